// Loads V consecutive elements of a thread as float32, and stores them, in the format that the record asks for at run
// time. All threads of a block have the same record, so the branches on the format do not diverge.
#pragma once

#include "cuda/access.cuh"
#include "format.h"
#include "tables.h"

namespace sf {

// Element j of packed 16-bit elements.
template <int BYTES>
__device__ __forceinline__ uint16_t half_at(const Words<BYTES>& words, int j) {
  return static_cast<uint16_t>(words.word[j / 2] >> (j % 2 * 16));
}

template <int BYTES>
__device__ __forceinline__ uint8_t byte_at(const Words<BYTES>& words, int j) {
  return static_cast<uint8_t>(words.word[j / 4] >> (j % 4 * 8));
}

// Packs V elements of 16 or 8 bits; at(j) is the j-th.
template <int BYTES, int V, typename At>
__device__ __forceinline__ Words<BYTES> packed(At at) {
  constexpr int bits = 8 * BYTES / V, per_word = V < 32 / bits ? V : 32 / bits;
  Words<BYTES> words;
#pragma unroll
  for (int w = 0; w < V / per_word; ++w) {
    uint32_t word = 0;
#pragma unroll
    for (int j = 0; j < per_word; ++j) word |= static_cast<uint32_t>(at(w * per_word + j)) << (j * bits);
    words.word[w] = word;
  }
  return words;
}

__device__ __forceinline__ float read_scale(int64_t scales, int64_t block) {
  return scale_value(static_cast<uint8_t>(load_words<1>(scales, block).word[0]));
}

template <int V>
__device__ __forceinline__ void read_floats(int64_t dtype, int64_t address, int64_t i, float (&x)[V]) {
  if (dtype == kFloat32) {
    const auto words = load_words<4 * V>(address, 4 * i);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = float_of(words.word[j]);
    return;
  }
  const auto words = load_words<2 * V>(address, 2 * i);
#pragma unroll
  for (int j = 0; j < V; ++j)
    x[j] = dtype == kBfloat16 ? from_bfloat16(half_at(words, j)) : from_float16(half_at(words, j));
}

template <int V>
__device__ __forceinline__ void write_floats(int64_t dtype, int64_t address, int64_t i, const float (&x)[V]) {
  if (dtype == kFloat32) {
    Words<4 * V> words;
#pragma unroll
    for (int j = 0; j < V; ++j) words.word[j] = bits_of(x[j]);
    store_words(address, 4 * i, words);
    return;
  }
  store_words(address, 2 * i,
              packed<2 * V, V>([&](int j) { return dtype == kBfloat16 ? to_bfloat16(x[j]) : to_float16(x[j]); }));
}

// The weights in float32, from the parameters and what is stored beside them.
template <int V>
__device__ __forceinline__ void read_weights(const Record& record, const Format& format, int64_t i, float (&x)[V]) {
  if (format.master == kSplit16 || format.master == kSplit8) {
    const auto parts = load_words<2 * V>(record.param, 2 * i);
    if (format.master == kSplit16) {
      const auto remainders = load_words<2 * V>(record.master, 2 * i);
#pragma unroll
      for (int j = 0; j < V; ++j) x[j] = join<16>(half_at(parts, j), static_cast<int16_t>(half_at(remainders, j)));
    } else {
      const auto remainders = load_words<V>(record.master, i);
#pragma unroll
      for (int j = 0; j < V; ++j) x[j] = join<8>(half_at(parts, j), static_cast<int8_t>(byte_at(remainders, j)));
    }
    return;
  }
  read_floats<V>(format.param, record.param, i, x);
  if (format.master == kKahan) {
    float lost[V];
    read_floats<V>(format.param, record.master, i, lost);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = compensated(x[j], lost[j], format.param == kBfloat16);
  } else if (format.master == kMaster32) {
    float master[V];
    read_floats<V>(kFloat32, record.master, i, master);
    // if someone has changed the parameter since, it counts and not the master weight
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const bool is_bfloat16 = format.param == kBfloat16;
      const uint16_t rounded = is_bfloat16 ? to_bfloat16(master[j]) : to_float16(master[j]);
      const uint16_t param = is_bfloat16 ? to_bfloat16(x[j]) : to_float16(x[j]);
      x[j] = rounded == param ? master[j] : x[j];
    }
  }
}

template <int V>
__device__ __forceinline__ void write_weights(const Record& record, const Format& format, int64_t i,
                                              const float (&x)[V], const uint32_t (&random)[V]) {
  if (format.master == kStochastic) {
    store_words(record.param, 2 * i, packed<2 * V, V>([&](int j) {
                  return format.param == kBfloat16 ? to_bfloat16(x[j], random[j]) : to_float16(x[j], random[j]);
                }));
  } else if (format.master == kSplit16) {
    store_words(record.param, 2 * i, packed<2 * V, V>([&](int j) { return split<16>(x[j]).part; }));
    store_words(record.master, 2 * i,
                packed<2 * V, V>([&](int j) { return static_cast<uint16_t>(split<16>(x[j]).remainder); }));
  } else if (format.master == kSplit8) {
    store_words(record.param, 2 * i, packed<2 * V, V>([&](int j) { return split<8>(x[j]).part; }));
    store_words(record.master, i, packed<V, V>([&](int j) { return static_cast<uint8_t>(split<8>(x[j]).remainder); }));
  } else {
    write_floats<V>(format.param, record.param, i, x);
    if (format.master == kKahan) {
      float lost[V];
#pragma unroll
      for (int j = 0; j < V; ++j) {
        const float stored =
            format.param == kBfloat16 ? from_bfloat16(to_bfloat16(x[j])) : from_float16(to_float16(x[j]));
        lost[j] = compensation(x[j], stored);
      }
      write_floats<V>(format.param, record.master, i, lost);
    } else if (format.master == kMaster32) {
      write_floats<V>(kFloat32, record.master, i, x);
    }
  }
}

// Reads moments i to i + V; those of 8 bits are of one block.
template <typename CODE, int V>
__device__ __forceinline__ void read_moments(int32_t kind, int64_t address, int64_t scales, int64_t i, int64_t block,
                                             float (&x)[V]) {
  if (kind == kState8) {
    const float scale = read_scale(scales, block);
    const auto codes = load_words<V>(address, i);
#pragma unroll
    for (int j = 0; j < V; ++j) x[j] = decode<CODE>(byte_at(codes, j), scale);
  } else {
    read_floats<V>(kind == kState16 ? kBfloat16 : kFloat32, address, i, x);
  }
}

// All threads of a warp have to call it; those without elements pass zeros and `stores` = false. Neighbours of the warp
// have the kBlock elements of a block of 8-bit codes, the first of which `is_first` one has. Call __syncwarp() after
// the scales were read.
template <typename CODE, int V>
__device__ __forceinline__ void write_moments(int32_t kind, int64_t address, int64_t scales, int64_t i, int64_t block,
                                              bool is_first, bool stores, const float (&x)[V],
                                              const uint32_t (&random)[V]) {
  if (kind == kState8) {
    uint32_t largest = 0;
#pragma unroll
    for (int j = 0; j < V; ++j) {
      const uint32_t magnitude = finite_magnitude(x[j]);
      largest = largest > magnitude ? largest : magnitude;
    }
    // the maximum over the threads that share a block's scale
#pragma unroll
    for (int flip = kBlock / V / 2; flip; flip /= 2) {
      const uint32_t other = __shfl_xor_sync(0xffffffffu, largest, flip);
      largest = largest > other ? largest : other;
    }
    const uint8_t scale = scale_of(largest);
    const float inverse = inverse_scale(scale);
    if (!stores) return;
    if (is_first) store_words(scales, block, Words<1>{{scale}});
    store_words(address, i, packed<V, V>([&](int j) { return encode<CODE>(x[j], inverse, random[j]); }));
  } else if (!stores) {
    return;
  } else if (kind == kState16) {
    store_words(address, 2 * i, packed<2 * V, V>([&](int j) { return to_bfloat16(x[j], random[j]); }));
  } else {
    write_floats<V>(kFloat32, address, i, x);
  }
}

}  // namespace sf
