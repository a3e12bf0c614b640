// C interface of programs.

#include "program.h"

#include "parallel.h"

Crew*& own_crew() {
  static thread_local Crew* crew = nullptr;
  return crew;
}

namespace {

int64_t run_all(ProgramArgs& a) {
  for (int64_t i = 0; i < a.count; i++)
    if (const int64_t status = a.steps[i].run(a.steps[i].args)) {
      a.failed = i;
      return status;
    }
  return 0;
}

}  // namespace

// Runs the steps up to the first that returns another number than 0; that number, or 1 for a program that there cannot be.
QM_API int64_t qm_run(ProgramArgs* args) {
  ProgramArgs& a = *args;
  a.failed = 0;
  if (a.count < 0 || a.threads < 1 || (a.count && !a.steps)) return 1;
#if defined(_OPENMP)
  if (a.threads > 1 && !forked() && !own_crew()) {
    int64_t status = 0;
    Crew crew;
#pragma omp parallel num_threads((int)a.threads)
    {
#pragma omp single
      crew.join(omp_get_num_threads());
      if (omp_get_thread_num() == 0) {
        own_crew() = &crew;
        status = run_all(a);
        own_crew() = nullptr;
        crew.dismiss();
      } else {
        crew.follow(omp_get_thread_num());
      }
    }
    return status;
  }
#endif
  return run_all(a);
}
