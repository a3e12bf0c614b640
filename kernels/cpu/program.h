// A program: calls of this library's functions one after the other. The Python side (qmambair_basicsr/ops/prepared.py)
// mirrors these structs field by field; change both, and qm_abi() in api.cpp.
#pragma once

#include <cstdint>

struct ProgramStep {
  int64_t (*run)(const void* args);  // returns 0 where it did its work
  const void* args;
};

struct ProgramArgs {
  int64_t count, threads;
  const ProgramStep* steps;
  int64_t failed;  // written: the step that did not do its work
};
