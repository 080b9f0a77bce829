// Code that is compiled once per instruction set, and chosen at run time: the best that the processor runs.
//
// setup.py compiles step.cpp and bandwidth_probe.cpp several times with -DSF_ISA=avx512 | avx2 | baseline; each object
// file defines one table of functions, named by SF_ISA_NAME.
#pragma once

#define SF_CONCAT_(a, b) a##b
#define SF_CONCAT(a, b) SF_CONCAT_(a, b)
#define SF_STRING_(a) #a
#define SF_STRING(a) SF_STRING_(a)
// The name of the instruction set that is being compiled for, as a string and as the end of an identifier.
#define SF_ISA_STRING SF_STRING(SF_ISA)
#define SF_ISA_NAME(prefix) SF_CONCAT(prefix, SF_ISA)

namespace sf {

struct Kernel;
struct BandwidthProbe;

// The one for the widest instruction set that this processor runs, or for the one named `isa`; null if that one cannot
// run here.
const Kernel* select_kernel(const char* isa);

// The one for the widest instruction set.
const BandwidthProbe& select_bandwidth_probe();

}  // namespace sf
