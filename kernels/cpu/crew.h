// Threads that stay together while a program of several calls runs, so that a step costs no start of threads.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

// One thread runs the program and hands out the tasks of its steps; the others wait for them in `follow`.
class Crew {
 public:
  // How many there are, the one that hands out the tasks with them; said before anything else.
  void join(int64_t threads) { shares_ = std::vector<Share>(threads); }

  // run(task, 0), ..., run(task, count - 1) on all threads, in any order; returns when all are done. A thread has a share of
  // neighbouring tasks, as those of one step after the other work on the same rows of a map, and then takes from others'.
  void share(int64_t count, void (*run)(const void* task, int64_t i), const void* task) {
    run_ = run, task_ = task;
    const int64_t threads = (int64_t)shares_.size();
    for (int64_t t = 0; t < threads; t++) {
      shares_[t].next.store(t * count / threads, std::memory_order_relaxed);
      shares_[t].end = (t + 1) * count / threads;
    }
    busy_.store(threads - 1, std::memory_order_relaxed);
    announce();
    work(0);
    wait([&] { return busy_.load() == 0; });
  }

  // No further tasks: `follow` returns.
  void dismiss() {
    over_ = true;
    announce();
  }

  // What the other threads do; they are 1, 2, ...
  void follow(int64_t thread) {
    for (int64_t seen = 0;; seen++) {
      wait([&] { return job_.load() != seen; });
      if (over_) return;
      work(thread);
      if (busy_.fetch_sub(1) == 1) wake();
    }
  }

 private:
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  void work(int64_t thread) {
    const int64_t threads = (int64_t)shares_.size();
    for (int64_t t = 0; t < threads; t++) {
      Share& share = shares_[(thread + t) % threads];
      for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;) run_(task_, i);
    }
  }

  void announce() {
    job_.fetch_add(1);
    wake();
  }

  // Spins for some 20 microseconds, longer than the steps of a program are apart. A wait that is longer has its reason in
  // other programs, and they get the processor.
  template <typename Condition>
  void wait(const Condition& met) {
    for (int spins = 0; spins < kSpins; spins++) {
      if (met()) return;
#if defined(__x86_64__)
      _mm_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
    std::unique_lock<std::mutex> lock(mutex_);
    asleep_.fetch_add(1);  // before the last look: who changes what is waited for looks at this behind it
    changed_.wait(lock, met);
    asleep_.fetch_sub(1);
  }

  void wake() {
    if (!asleep_.load()) return;
    { const std::lock_guard<std::mutex> lock(mutex_); }  // nobody is between the last look and sleep
    changed_.notify_all();
  }

  static constexpr int kSpins = 1000;
  std::vector<Share> shares_;
  void (*run_)(const void* task, int64_t i) = nullptr;
  const void* task_ = nullptr;
  bool over_ = false;
  alignas(64) std::atomic<int64_t> job_{0};
  alignas(64) std::atomic<int64_t> busy_{0};
  alignas(64) std::atomic<int64_t> asleep_{0};
  std::mutex mutex_;
  std::condition_variable changed_;
};

// The crew of the program that this thread runs; null outside programs.
Crew*& own_crew();
