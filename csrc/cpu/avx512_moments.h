// Reads and writes Adam's two moments by the vectors of avx512.h: one class per kind of state. An object holds what is
// known of a chunk while it is read, block by block and pair by pair: read(), observe(), and finish() in the end.
// write_block() and write_pair() then write it.
#pragma once

#include "cpu/avx512_codec.h"
#include "cpu/chunk.h"
#include "cpu/moments.h"

namespace sf {
namespace {

// Bytes per element of a moment.
constexpr int bytes_of_moment(int32_t state) { return state == kState32 ? 4 : state == kState16 ? 2 : 1; }

// Addresses of a tile's first elements.
struct TileMoments {
  void *exp_avg, *exp_avg_sq;
  uint8_t *exp_avg_scale, *exp_avg_sq_scale;
};

#if SF_AVX512

constexpr int kBlocks = kChunk / kBlock;
static_assert(kBlocks == 16);

struct MomentsOfBlock {
  EvenOdd<Numbers> exp_avg, exp_avg_sq;
};

// Float32 or bfloat16.
template <int DTYPE>
class PlainMoments {
 public:
  static constexpr int bytes = DTYPE == kFloat32 ? 4 : 2;
  struct Scaling {};
  struct Words {};

  SF_HOST_DEVICE_MEMBER PlainMoments(const TileMoments&, int64_t) {}
  SF_HOST_DEVICE_MEMBER static void prefetch_pair(const TileMoments& tile, int64_t at) {
    for (int half = 0; half < 2 * kBlock; half += kBlock) {
      prefetch_block<bytes>(tile.exp_avg, at + half);
      prefetch_block<bytes>(tile.exp_avg_sq, at + half);
    }
  }
  SF_HOST_DEVICE_MEMBER void begin_pair(const TileMoments&, int64_t) {}
  template <int B>
  SF_HOST_DEVICE_MEMBER MomentsOfBlock read(const TileMoments& tile, int64_t at, int) const {
    return {read_numbers<DTYPE>(tile.exp_avg, at), read_numbers<DTYPE>(tile.exp_avg_sq, at)};
  }
  SF_HOST_DEVICE_MEMBER void observe(int, const MomentsOfBlock&) {}
  SF_HOST_DEVICE_MEMBER bool finish(const TileMoments&, int64_t, Scaling&) const { return true; }

  SF_HOST_DEVICE_MEMBER static void write_block(const TileMoments& tile, int64_t at, const float* exp_avg,
                                                const float* exp_avg_sq, const EvenOdd<Bits>& random, const Scaling&,
                                                int, Words&) {
    write(tile.exp_avg, at, load_pair<Bits>(exp_avg), random);
    write(tile.exp_avg_sq, at, load_pair<Bits>(exp_avg_sq), random);
  }
  SF_HOST_DEVICE_MEMBER static void write_pair(const TileMoments&, int64_t, const float* const (&)[2], const Words&) {}

 private:
  SF_HOST_DEVICE_MEMBER static void write(void* to, int64_t at, const EvenOdd<Bits>& x, const EvenOdd<Bits>& random) {
    if constexpr (DTYPE == kFloat32) {
      write_float32(to, at, x);
    } else {
      const EvenOdd<Bfloat16Lanes> rounded = {{x.even + random.even}, {x.odd + random.odd}};
      write_rounded(to, at, rounded);
    }
  }
};

class EightBitMoments {
 public:
  // Of the scales of a chunk that is to be written.
  struct alignas(64) Scaling {
    float inverse[kBlocks], half_inverse[kBlocks], inverse_sq[kBlocks];
  };
  // A pair of blocks before its bytes are packed: 16 bits per element, one block per vector.
  struct Words {
    Bits exp_avg[2], exp_avg_sq[2];
  };

  SF_HOST_DEVICE_MEMBER EightBitMoments(const TileMoments& tile, int64_t first) {
    for (int b = 0; b < kBlocks; ++b) scale_[b] = scale_value(tile.exp_avg_scale[first / kBlock + b]);
    for (int b = 0; b < kBlocks; ++b) scale_sq_[b] = scale_value(tile.exp_avg_sq_scale[first / kBlock + b]);
  }
  SF_HOST_DEVICE_MEMBER static void prefetch_pair(const TileMoments& tile, int64_t at) {
    __builtin_prefetch(static_cast<const uint8_t*>(tile.exp_avg) + at);
    __builtin_prefetch(static_cast<const uint8_t*>(tile.exp_avg_sq) + at);
  }
  SF_HOST_DEVICE_MEMBER void begin_pair(const TileMoments& tile, int64_t at) {
    const Bits codes = load<Bits>(static_cast<const uint8_t*>(tile.exp_avg) + at);
    code_ = max_bytes(code_, codes & broadcast<0x7F7F7F7F>());
    const Bits codes_sq = load<Bits>(static_cast<const uint8_t*>(tile.exp_avg_sq) + at);
    code_sq_ = max_bytes(code_sq_, codes_sq);
    has_subnormal_ = _mm512_cmplt_epu8_mask(as_m512i(codes_sq), as_m512i(broadcast<0x08080808>())) != 0;
    as_float16_ = first_as_float16(codes);
  }
  // Block B of a pair, 0 or 1.
  template <int B>
  SF_HOST_DEVICE_MEMBER MomentsOfBlock read(const TileMoments& tile, int64_t at, int block) const {
    return {decode_first<B>(as_float16_, scale_[block]),
            decode_second(static_cast<const uint8_t*>(tile.exp_avg_sq) + at, scale_sq_[block], has_subnormal_)};
  }
  SF_HOST_DEVICE_MEMBER void observe(int block, const MomentsOfBlock& of) {
    // the maxima may lose a NaN or a negative second moment, but then the weight is NaN
    largest_[block] = as_bits(max_magnitude(of.exp_avg.even, of.exp_avg.odd));
    largest_sq_[block] = as_bits(maximum(of.exp_avg_sq.even, of.exp_avg_sq.odd));
  }
  // Writes the scales of a chunk. Returns false, and writes nothing, if the chunk is out of range.
  SF_HOST_DEVICE_MEMBER bool finish(const TileMoments& tile, int64_t first, Scaling& scaling) const {
    const Bits largest = row_maxima(largest_), largest_sq = row_maxima(largest_sq_);
    // from here on half of an inverse scale would be subnormal
    constexpr uint32_t too_large = kLargestScaled - (1u << 23);
    const uint64_t out_of_range =
        _mm512_cmpge_epu32_mask(as_m512i(largest), as_m512i(broadcast<too_large>())) |
        _mm512_cmpge_epu32_mask(as_m512i(largest_sq), as_m512i(broadcast<too_large>())) |
        _mm512_cmpgt_epu8_mask(as_m512i(code_), as_m512i(broadcast<FirstMoment::largest * 0x01010101>())) |
        _mm512_cmpgt_epu8_mask(as_m512i(code_sq_), as_m512i(broadcast<SecondMoment::largest * 0x01010101>()));
    if (out_of_range) return false;
    // scale_of and inverse_scale
    const Bits scale = (largest + broadcast<0x7FFFFF>()) >> 23, scale_sq = (largest_sq + broadcast<0x7FFFFF>()) >> 23;
    const Bits inverse = (broadcast<254>() - scale) << 23;
    store(scaling.inverse, inverse);
    store(scaling.half_inverse, inverse - broadcast<1 << 23>());
    store(scaling.inverse_sq, (broadcast<254>() - scale_sq) << 23);
    store(tile.exp_avg_scale + first / kBlock, _mm512_cvtepi32_epi8(as_m512i(scale)));
    store(tile.exp_avg_sq_scale + first / kBlock, _mm512_cvtepi32_epi8(as_m512i(scale_sq)));
    return true;
  }

  // Rounds the moments of a block into `words`.
  SF_HOST_DEVICE_MEMBER static void write_block(const TileMoments&, int64_t, const float* exp_avg,
                                                const float* exp_avg_sq, const EvenOdd<Bits>& random,
                                                const Scaling& scaling, int block, Words& words) {
    const EvenOdd<Bits> shifted = {random.even << 4, random.odd << 4};
    const auto m = load_pair<Numbers>(exp_avg), v = load_pair<Numbers>(exp_avg_sq);
    const float inverse = scaling.inverse[block], half_inverse = scaling.half_inverse[block];
    const float inverse_sq = scaling.inverse_sq[block];
    words.exp_avg[block % 2] = upper_halves({first_steps(m.even, inverse, half_inverse, shifted.even),
                                             first_steps(m.odd, inverse, half_inverse, shifted.odd)});
    words.exp_avg_sq[block % 2] =
        upper_halves({second_steps(v.even, inverse_sq, shifted.even), second_steps(v.odd, inverse_sq, shifted.odd)});
  }
  // Writes the codes of a pair of blocks, whose second moments are given too.
  SF_HOST_DEVICE_MEMBER static void write_pair(const TileMoments& tile, int64_t at, const float* const (&exp_avg_sq)[2],
                                               const Words& words) {
    store(static_cast<uint8_t*>(tile.exp_avg) + at, first_codes(words.exp_avg));
    store(static_cast<uint8_t*>(tile.exp_avg_sq) + at, second_codes(words.exp_avg_sq, exp_avg_sq[0], exp_avg_sq[1]));
  }

 private:
  alignas(64) float scale_[kBlocks], scale_sq_[kBlocks];
  EvenOdd<Bits> as_float16_;                     // the first moments of the pair
  bool has_subnormal_;                           // some second moment of the pair
  Bits largest_[kBlocks], largest_sq_[kBlocks];  // the maximum of each row is that of a block
  Bits code_ = Bits{}, code_sq_ = Bits{};        // the largest codes that were read, without signs
};

template <int STATE>
using Moments =
    std::conditional_t<STATE == kState8, EightBitMoments, PlainMoments<STATE == kState16 ? kBfloat16 : kFloat32>>;

#endif

}  // namespace
}  // namespace sf
