// The processor's instructions as functions, without the warnings of GCC's own header: that has vectors which it leaves
// undefined on purpose.
#pragma once

#if defined(__AVX2__)
#if !defined(__clang__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>
#if !defined(__clang__)
#pragma GCC diagnostic pop
#endif
#endif
