// The CPU kernel converts tiles that are not float32 a chunk at a time: small enough that its float32 arrays stay in
// the first-level cache. Conversions of plain numbers, and the random bits of a chunk. Part of step.cpp, and compiled
// with it for each instruction set.
#pragma once

#include <cstring>

#include "codec.h"
#include "cpu/intrinsics.h"
#include "random_bits.h"
#include "tables.h"

namespace sf {
namespace {

constexpr int64_t kChunk = 512;
static_assert(kTileElements % kChunk == 0 && kChunk % kBlock == 0);

template <typename T>
T* pointer(int64_t address, int64_t offset) {
  return address ? reinterpret_cast<T*>(address) + offset : nullptr;
}

// Writes the random bits of the elements of a tile from `first` on.
inline void draw_random_bits(const TileRandom& of_tile, uint32_t first, uint32_t count, uint32_t* __restrict out) {
  uint32_t done = 0;
  while (done < count) {
    const uint32_t index = of_tile.first + first + done, begin = index % kTileElements;
    const uint32_t until = kTileElements - begin, left = count - done < until ? count - done : until;
    const Stream stream = of_tile.streams[index >= kTileElements];
    uint32_t* __restrict to = out + done;
    const uint32_t odd = begin % 2;  // then the first element has the upper half of a word
    if (odd) to[0] = random_bits(stream, begin);
    // a 32-bit index, as the hash needs: converting a 64-bit one would take half of the time
    for (uint32_t i = 0; i < (left - odd) / 2; ++i) {
      const uint32_t word = random_word(stream, (begin + odd) / 2 + i);
      to[odd + 2 * i] = word & 0xFFFF, to[odd + 2 * i + 1] = word >> 16;
    }
    if ((left - odd) % 2) to[left - 1] = random_bits(stream, begin + left - 1);
    done += left;
  }
}

// Reads `count` elements of a dtype as float32.
inline void read_floats(int64_t dtype, int64_t address, int64_t offset, int64_t count, float* __restrict out) {
  if (dtype == kFloat32) {
    const float* __restrict in = pointer<const float>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = in[i];
  } else if (dtype == kBfloat16) {
    const uint16_t* __restrict in = pointer<const uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = from_bfloat16(in[i]);
  } else {
    const uint16_t* __restrict in = pointer<const uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = from_float16(in[i]);
  }
}

// Writes float32 numbers as float16, rounded to nearest. Compilers make no vectors of to_float16(), but processors have
// an instruction for it.
inline void write_float16(const float* __restrict in, uint16_t* __restrict out, int64_t count) {
  int64_t i = 0;
#if defined(__F16C__)
  for (; i + 8 <= count; i += 8) {
    const __m256 x = _mm256_loadu_ps(in + i);
    // the instruction keeps what a NaN carries
    if (_mm256_movemask_ps(_mm256_cmp_ps(x, x, _CMP_UNORD_Q))) {
      for (int k = 0; k < 8; ++k) out[i + k] = to_float16(in[i + k]);
    } else {
      const __m128i rounded = _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
      std::memcpy(out + i, &rounded, sizeof rounded);
    }
  }
#endif
  for (; i < count; ++i) out[i] = to_float16(in[i]);
}

// Writes float32 numbers as elements of a dtype, rounded to nearest.
inline void write_floats(int64_t dtype, const float* __restrict in, int64_t address, int64_t offset, int64_t count) {
  if (dtype == kFloat32) {
    float* __restrict out = pointer<float>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = in[i];
  } else if (dtype == kBfloat16) {
    uint16_t* __restrict out = pointer<uint16_t>(address, offset);
    for (int64_t i = 0; i < count; ++i) out[i] = to_bfloat16(in[i]);
  } else {
    write_float16(in, pointer<uint16_t>(address, offset), count);
  }
}

}  // namespace
}  // namespace sf
