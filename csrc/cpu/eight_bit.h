// Adam on whole chunks of parameters with 8-bit moments, by AVX-512. These schemes move the fewest bytes, so that
// arithmetic sets the time and not memory. This path takes a third of the time of the passes in low_precision.h and
// gives the same bits:
// - numbers stay in the lanes into which they are unpacked (avx512.h), and in registers while the rule is applied;
// - every step of the codec is one or two instructions (avx512_codec.h);
// - a chunk is encoded while the divider works on the next one.
// Nothing of a chunk is written until all of it is known to be in range. Other chunks are left to low_precision.h.
#pragma once

#include "cpu/avx512_codec.h"
#include "cpu/avx512_weights.h"
#include "cpu/chunk.h"
#include "cpu/moments.h"
#include "format.h"
#include "update_rule.h"

namespace sf {
namespace {

// Addresses of the whole chunks of a tile.
struct EightBitTile {
  TileWeights weights;
  uint8_t *exp_avg, *exp_avg_sq;
  uint8_t *exp_avg_scale, *exp_avg_sq_scale;
  Stream stream;
  int64_t count;
};

#if SF_AVX512

constexpr int kPairCodes = 2 * kBlock;  // a pair of blocks: their codes fill a vector
constexpr int kAhead = 2 * kChunk;      // distance of prefetches, in elements
constexpr int kBlocks = kChunk / kBlock;
static_assert(kBlocks == 16);

struct alignas(64) Block {
  float weight[kBlock], exp_avg[kBlock], exp_avg_sq[kBlock];
};

// A chunk in float32, after its update and before it is written.
struct alignas(64) DecodedChunk {
  Block blocks[kBlocks];
  float inverse[kBlocks], half_inverse[kBlocks], inverse_sq[kBlocks];  // of scales
  int64_t first;                                                       // within the tile
};

// The extreme values of a chunk, which tell whether it is in range, and give its scales.
struct Extremes {
  Bits largest[kBlocks], largest_sq[kBlocks];  // the maximum of each row is that of a block
  Bits code = Bits{}, code_sq = Bits{};        // the largest codes that were read, without signs
  Numbers not_finite = Numbers{};              // NaN if some weight is not finite, else 0
};

// A pair of blocks before its bytes are packed: 16 bits per element, one block per vector.
struct Words {
  Bits exp_avg[2], exp_avg_sq[2], remainder[2];
};

// The operations of a rule (Ieee in update_rule.h) for sixteen numbers at a time.
struct Avx512Arithmetic {
  SF_HOST_DEVICE_MEMBER static Numbers multiply_add(Numbers a, Numbers b, Numbers c) {
    return sf::multiply_add(a, b, c);
  }
  SF_HOST_DEVICE_MEMBER static Numbers multiply_add(float a, Numbers b, Numbers c) {
    return sf::multiply_add(broadcast(a), b, c);
  }
  SF_HOST_DEVICE_MEMBER static Numbers ratio(Numbers exp_avg, Numbers second_moment, float eps) {
    const Numbers denom = square_root(second_moment) + eps;
    return exp_avg / denom;
  }
  SF_HOST_DEVICE_MEMBER static Numbers times_sign(Numbers x, Numbers of) {
    return as_numbers(as_bits(x) ^ (as_bits(of) & broadcast<~kMagnitude>()));
  }
};

// Updates block B of a pair, 0 or 1; `codes` are the first moments of the pair, as float16.
template <int RULE, typename Weights, bool IS_BOXED, int B>
SF_HOST_DEVICE void update_block(const EightBitTile& tile, const Row& row, int64_t at, const EvenOdd<Bits>& codes,
                                 const float* scale, const float* scale_sq, int block, DecodedChunk& chunk,
                                 Extremes& extremes) {
  EvenOdd<Numbers> weight = Weights::read(tile.weights, at);
  const EvenOdd<Numbers> grad = Weights::read_grad(tile.weights, at);
  Weights::prefetch(tile.weights, at + kAhead);
  EvenOdd<Numbers> m = decode_first<B>(codes, scale[block]), v = decode_second(tile.exp_avg_sq + at, scale_sq[block]);
  Numbers none;
  adam_update<RULE, Avx512Arithmetic>(row, weight.even, grad.even, m.even, v.even, none);
  adam_update<RULE, Avx512Arithmetic>(row, weight.odd, grad.odd, m.odd, v.odd, none);
  extremes.not_finite = multiply_add(weight.even, Numbers{}, multiply_add(weight.odd, Numbers{}, extremes.not_finite));
  // the maxima may lose a NaN or a negative second moment, but then the weight is NaN, which not_finite records
  extremes.largest[block] = as_bits(max_magnitude(m.even, m.odd));
  extremes.largest_sq[block] = as_bits(maximum(v.even, v.odd));
  Block& to = chunk.blocks[block];
  store_pair(to.weight, weight);
  store_pair(to.exp_avg, m);
  store_pair(to.exp_avg_sq, v);
  if constexpr (IS_BOXED) {
    for (float& x : to.weight) x = project(row, x);
  }
}

// Writes the scales of a chunk. Returns false, and writes nothing, if the chunk is out of range.
SF_HOST_DEVICE bool write_scales(const EightBitTile& tile, const Extremes& extremes, DecodedChunk& chunk) {
  const Bits largest = row_maxima(extremes.largest), largest_sq = row_maxima(extremes.largest_sq);
  // from here on half of an inverse scale would be subnormal
  constexpr uint32_t too_large = kLargestScaled - (1u << 23);
  const uint64_t out_of_range =
      _mm512_cmpge_epu32_mask(as_m512i(largest), as_m512i(broadcast<too_large>())) |
      _mm512_cmpge_epu32_mask(as_m512i(largest_sq), as_m512i(broadcast<too_large>())) |
      _mm512_cmpneq_ps_mask(extremes.not_finite, extremes.not_finite) |
      _mm512_cmpgt_epu8_mask(as_m512i(extremes.code), as_m512i(broadcast<FirstMoment::largest * 0x01010101>())) |
      _mm512_cmpgt_epu8_mask(as_m512i(extremes.code_sq), as_m512i(broadcast<SecondMoment::largest * 0x01010101>()));
  if (out_of_range) return false;
  // scale_of and inverse_scale
  const Bits scale = (largest + broadcast<0x7FFFFF>()) >> 23, scale_sq = (largest_sq + broadcast<0x7FFFFF>()) >> 23;
  const Bits inverse = (broadcast<254>() - scale) << 23;
  store(chunk.inverse, inverse);
  store(chunk.half_inverse, inverse - broadcast<1 << 23>());
  store(chunk.inverse_sq, (broadcast<254>() - scale_sq) << 23);
  store(tile.exp_avg_scale + chunk.first / kBlock, _mm512_cvtepi32_epi8(as_m512i(scale)));
  store(tile.exp_avg_sq_scale + chunk.first / kBlock, _mm512_cvtepi32_epi8(as_m512i(scale_sq)));
  return true;
}

// The words from which the hash makes the random numbers of the block at `first`, one per two elements.
SF_HOST_DEVICE Bits unmixed_words(const Stream& stream, int64_t first) {
  const Bits lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lanes * kIndexStride + (stream.first + static_cast<uint32_t>(first / 2) * kIndexStride);
}

// Writes the parameters of a block; rounds its moments into `words`.
template <typename Weights>
SF_HOST_DEVICE void write_block(const EightBitTile& tile, const DecodedChunk& chunk, int block, Bits& next,
                                Words& words) {
  const Block& from = chunk.blocks[block];
  const int b = block % 2;
  const Bits mixed = mixed_bits(tile.stream, next);
  next += broadcast<kBlock / 2 * kIndexStride>();
  const Bits upper = mixed >> 16;  // the last step of random_word() leaves the upper 16 bits unchanged
  const EvenOdd<Bits> random = {masked_xor<0xFFFF>(mixed, upper), upper};
  const EvenOdd<Bits> shifted = {random.even << 4, random.odd << 4};
  const auto m = load_pair<Numbers>(from.exp_avg), v = load_pair<Numbers>(from.exp_avg_sq);
  const int64_t at = chunk.first + block * kBlock;
  words.remainder[b] = Weights::write(tile.weights, at, load_pair<Bits>(from.weight), random);
  const float inverse = chunk.inverse[block], half_inverse = chunk.half_inverse[block];
  const float inverse_sq = chunk.inverse_sq[block];
  words.exp_avg[b] = upper_halves({first_steps(m.even, inverse, half_inverse, shifted.even),
                                   first_steps(m.odd, inverse, half_inverse, shifted.odd)});
  words.exp_avg_sq[b] =
      upper_halves({second_steps(v.even, inverse_sq, shifted.even), second_steps(v.odd, inverse_sq, shifted.odd)});
}

// Writes the codes and remainders of a pair of blocks.
template <typename Weights>
SF_HOST_DEVICE void write_pair(const EightBitTile& tile, const DecodedChunk& chunk, int pair, const Words& words) {
  const int64_t first = chunk.first + pair * kPairCodes;
  const Block* const from = chunk.blocks + 2 * pair;
  if constexpr (Weights::has_remainder) {
    store(tile.weights.remainder + first, pack_bytes(shift_words_right<8>(words.remainder[0]), words.remainder[1]));
  }
  store(tile.exp_avg + first, first_codes(words.exp_avg));
  store(tile.exp_avg_sq + first, second_codes(words.exp_avg_sq, from[0].exp_avg_sq, from[1].exp_avg_sq));
}

template <int RULE, typename Weights, bool IS_BOXED, typename Fallback>
void update_eight_bit_by(const EightBitTile& given_tile, const Row& given_row, const Fallback& fallback) {
  const EightBitTile tile = given_tile;  // copies that no store can alias
  const Row row = given_row;
  DecodedChunk chunks[2];
  const DecodedChunk* previous = nullptr;  // updated, but not written yet
  for (int64_t first = 0; first < tile.count; first += kChunk) {
    DecodedChunk& chunk = chunks[first / kChunk % 2];
    chunk.first = first;
    alignas(64) float scale[kBlocks], scale_sq[kBlocks];
    for (int b = 0; b < kBlocks; ++b) scale[b] = scale_value(tile.exp_avg_scale[first / kBlock + b]);
    for (int b = 0; b < kBlocks; ++b) scale_sq[b] = scale_value(tile.exp_avg_sq_scale[first / kBlock + b]);
    Extremes extremes;
    Bits next = unmixed_words(tile.stream, first - kChunk);
    for (int block = 0; block < kBlocks; block += 2) {
      const int64_t at = first + block * kBlock;
      const Bits codes = load<Bits>(tile.exp_avg + at);
      extremes.code = max_bytes(extremes.code, codes & broadcast<0x7F7F7F7F>());
      extremes.code_sq = max_bytes(extremes.code_sq, load<Bits>(tile.exp_avg_sq + at));
      __builtin_prefetch(tile.exp_avg + at + kAhead);
      __builtin_prefetch(tile.exp_avg_sq + at + kAhead);
      const EvenOdd<Bits> as_float16 = first_as_float16(codes);
      Words words;
      if (previous) write_block<Weights>(tile, *previous, block, next, words);
      update_block<RULE, Weights, IS_BOXED, 0>(tile, row, at, as_float16, scale, scale_sq, block, chunk, extremes);
      if (previous) write_block<Weights>(tile, *previous, block + 1, next, words);
      update_block<RULE, Weights, IS_BOXED, 1>(tile, row, at + kBlock, as_float16, scale, scale_sq, block + 1, chunk,
                                               extremes);
      if (previous) write_pair<Weights>(tile, *previous, block / 2, words);
    }
    previous = write_scales(tile, extremes, chunk) ? &chunk : nullptr;
    if (!previous) fallback(first, first + kChunk);
  }
  if (!previous) return;
  Bits next = unmixed_words(tile.stream, previous->first);
  for (int block = 0; block < kBlocks; block += 2) {
    Words words;
    for (int b = 0; b < 2; ++b) write_block<Weights>(tile, *previous, block + b, next, words);
    write_pair<Weights>(tile, *previous, block / 2, words);
  }
}

template <int RULE, typename Weights, typename Fallback>
void update_eight_bit_by(const EightBitTile& tile, const Row& row, const Fallback& fallback) {
  const bool is_boxed = row.low > -__builtin_inff() || row.high < __builtin_inff();
  const auto update = is_boxed ? update_eight_bit_by<RULE, Weights, true, Fallback>
                               : update_eight_bit_by<RULE, Weights, false, Fallback>;
  update(tile, row, fallback);
}

// True for the records that this path updates, unless their gradients are summed up.
inline bool takes_eight_bit_path(const Record& record, int32_t rule) {
  const Format format = format_of(record.format);
  const bool has_master_path = format.master == kNoMaster || format.master == kStochastic || format.master == kSplit8;
  return (format.param == kBfloat16 ? has_master_path : format.param == kFloat32) &&
         record.grad_dtype == format.param && format.state == kState8 &&
         (rule == 0 || rule == kL2 || rule == kCautious);
}

template <typename Weights, typename Fallback>
void update_eight_bit_of(const EightBitTile& tile, const Row& row, const Fallback& fallback) {
  switch (row.rule) {
    case kL2:
      return update_eight_bit_by<kL2, Weights>(tile, row, fallback);
    case kCautious:
      return update_eight_bit_by<kCautious, Weights>(tile, row, fallback);
    default:
      return update_eight_bit_by<0, Weights>(tile, row, fallback);
  }
}

// Updates a tile's whole chunks. It calls fallback(begin, end) for each chunk that is out of range, of which nothing
// has been written.
template <typename Fallback>
void update_eight_bit(const EightBitTile& tile, const Format& format, const Row& row, const Fallback& fallback) {
  if (format.param == kFloat32) return update_eight_bit_of<Float32Weights>(tile, row, fallback);
  switch (format.master) {
    case kSplit8:
      return update_eight_bit_of<Bfloat16Weights<kSplit8>>(tile, row, fallback);
    case kStochastic:
      return update_eight_bit_of<Bfloat16Weights<kStochastic>>(tile, row, fallback);
    default:
      return update_eight_bit_of<Bfloat16Weights<kNoMaster>>(tile, row, fallback);
  }
}

#else

inline bool takes_eight_bit_path(const Record&, int32_t) { return false; }

template <typename Fallback>
void update_eight_bit(const EightBitTile&, const Format&, const Row&, const Fallback&) {}

#endif

}  // namespace
}  // namespace sf
