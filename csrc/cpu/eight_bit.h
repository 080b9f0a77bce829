// Chunks of parameters with 8-bit moments for Adam: the formats of the fewest bytes, so that arithmetic bounds them and
// not memory. With AVX-512 they take a third as long here as in the passes of low_precision.h, and become the same
// bits: numbers stay in the lanes where they are unpacked (avx512.h), and in registers while the rule is applied; every
// step of the codec is the one or two instructions that there are for it (avx512_codec.h); and while the divider works
// on a chunk, the chunk before it is encoded. Nothing is written of a chunk until all of it is known to be usual; the
// others are for low_precision.h.
#pragma once

#include "cpu/avx512_codec.h"
#include "cpu/avx512_weights.h"
#include "cpu/low_precision.h"
#include "update_rule.h"

namespace sf {
namespace {

// A tile's whole chunks.
struct EightBitTile {
  WeightsOfTile weights;
  uint8_t *exp_avg, *exp_avg_sq;
  uint8_t *exp_avg_scale, *exp_avg_sq_scale;
  Stream stream;
  int64_t count;
};

#if SF_LANES

constexpr int kPiece = 2 * kBlock;  // as many codes as a vector has bytes
constexpr int kAhead = 2 * kChunk;  // of what is read, the caches are asked for
constexpr int kBlocks = kChunk / kBlock;
static_assert(kBlocks == 16);

struct alignas(64) Block {
  float weight[kBlock], exp_avg[kBlock], exp_avg_sq[kBlock];
};

// A chunk as float32, from its decoding until it is written.
struct alignas(64) DecodedChunk {
  Block blocks[kBlocks];
  float inverse[kBlocks], half_inverse[kBlocks], inverse_sq[kBlocks];  // of scales
  int64_t first;                                                       // within the tile
};

// What tells whether a chunk is unusual, and its scales.
struct Survey {
  Bits largest[kBlocks], largest_sq[kBlocks];  // rows of which the maxima are those of the blocks
  Bits code = Bits{}, code_sq = Bits{};        // the largest codes, without signs
  Numbers nothing = Numbers{};                 // NaN if some weight is not finite
};

// What bytes of a piece are made of: 16 bits for each, a block in a vector.
struct Words {
  Bits exp_avg[2], exp_avg_sq[2], remainder[2];
};

// What the rule computes with, sixteen numbers at a time.
struct InLanes {
  SF_HOST_DEVICE_MEMBER static Numbers multiply_add(Numbers a, Numbers b, Numbers c) {
    return sf::multiply_add(a, b, c);
  }
  SF_HOST_DEVICE_MEMBER static Numbers multiply_add(float a, Numbers b, Numbers c) {
    return sf::multiply_add(all(a), b, c);
  }
  SF_HOST_DEVICE_MEMBER static Numbers ratio(Numbers exp_avg, Numbers second_moment, float eps) {
    const Numbers denom = square_root(second_moment) + eps;
    return exp_avg / denom;
  }
};

// Updates the block B of a piece, of whose first moments these are the codes.
template <int RULE, typename Weights, bool IS_BOXED, int B>
SF_HOST_DEVICE void update_block(const EightBitTile& tile, const Row& row, int64_t at, const Halves<Bits>& codes,
                                 const float* scale, const float* scale_sq, int block, DecodedChunk& chunk,
                                 Survey& survey) {
  Halves<Numbers> weight = Weights::read(tile.weights, at);
  const Halves<Numbers> grad = Weights::read_grad(tile.weights, at);
  Weights::ask_for(tile.weights, at + kAhead);
  Halves<Numbers> m = decode_first<B>(codes, scale[block]), v = decode_second(tile.exp_avg_sq + at, scale_sq[block]);
  Numbers none;
  adam_update<RULE, InLanes>(row, weight.even, grad.even, m.even, v.even, none);
  adam_update<RULE, InLanes>(row, weight.odd, grad.odd, m.odd, v.odd, none);
  survey.nothing = multiply_add(weight.even, Numbers{}, multiply_add(weight.odd, Numbers{}, survey.nothing));
  // these lose a NaN, or a second moment below zero, but the weight that it moves is NaN
  survey.largest[block] = as_bits(larger_magnitude(m.even, m.odd));
  survey.largest_sq[block] = as_bits(larger(v.even, v.odd));
  Block& to = chunk.blocks[block];
  store_halves(to.weight, weight);
  store_halves(to.exp_avg, m);
  store_halves(to.exp_avg_sq, v);
  if constexpr (IS_BOXED) {
    for (float& x : to.weight) x = project(row, x);
  }
}

// Writes the scales of a chunk, unless it is unusual.
SF_HOST_DEVICE bool write_scales(const EightBitTile& tile, const Survey& survey, DecodedChunk& chunk) {
  const Bits largest = row_maxima(survey.largest), largest_sq = row_maxima(survey.largest_sq);
  constexpr uint32_t too_large = kLargestScaled - (1u << 23);  // half of the inverse would be subnormal
  const uint64_t unusual = _mm512_cmpge_epu32_mask(raw(largest), raw(all<too_large>())) |
                           _mm512_cmpge_epu32_mask(raw(largest_sq), raw(all<too_large>())) |
                           _mm512_cmpneq_ps_mask(survey.nothing, survey.nothing) |
                           _mm512_cmpgt_epu8_mask(raw(survey.code), raw(all<FirstMoment::largest * 0x01010101>())) |
                           _mm512_cmpgt_epu8_mask(raw(survey.code_sq), raw(all<SecondMoment::largest * 0x01010101>()));
  if (unusual) return false;
  // scale_of and inverse_scale
  const Bits scale = (largest + all<0x7FFFFF>()) >> 23, scale_sq = (largest_sq + all<0x7FFFFF>()) >> 23;
  const Bits inverse = (all<254>() - scale) << 23;
  store(chunk.inverse, inverse);
  store(chunk.half_inverse, inverse - all<1 << 23>());
  store(chunk.inverse_sq, (all<254>() - scale_sq) << 23);
  store(tile.exp_avg_scale + chunk.first / kBlock, _mm512_cvtepi32_epi8(raw(scale)));
  store(tile.exp_avg_sq_scale + chunk.first / kBlock, _mm512_cvtepi32_epi8(raw(scale_sq)));
  return true;
}

// What random numbers are mixed of, for the pairs of the block at `first`.
SF_HOST_DEVICE Bits unmixed(const Stream& stream, int64_t first) {
  const Bits lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lanes * kIndexStride + (stream.first + static_cast<uint32_t>(first / 2) * kIndexStride);
}

// Writes the parameters of a block, and leaves the rest of it rounded.
template <typename Weights>
SF_HOST_DEVICE void write_block(const EightBitTile& tile, const DecodedChunk& chunk, int block, Bits& next,
                                Words& words) {
  const Block& from = chunk.blocks[block];
  const int b = block % 2;
  const Bits mixed = mixed_bits(tile.stream, next);
  next += all<kBlock / 2 * kIndexStride>();
  const Bits upper = mixed >> 16;  // of what random_word() makes of it the upper half is this
  const Halves<Bits> random = {masked_difference<0xFFFF>(mixed, upper), upper};
  const Halves<Bits> shifted = {random.even << 4, random.odd << 4};
  const auto m = load_halves<Numbers>(from.exp_avg), v = load_halves<Numbers>(from.exp_avg_sq);
  const int64_t at = chunk.first + block * kBlock;
  words.remainder[b] = Weights::write(tile.weights, at, load_halves<Bits>(from.weight), random);
  const float inverse = chunk.inverse[block], half_inverse = chunk.half_inverse[block];
  const float inverse_sq = chunk.inverse_sq[block];
  words.exp_avg[b] = upper_halves({first_steps(m.even, inverse, half_inverse, shifted.even),
                                   first_steps(m.odd, inverse, half_inverse, shifted.odd)});
  words.exp_avg_sq[b] =
      upper_halves({second_steps(v.even, inverse_sq, shifted.even), second_steps(v.odd, inverse_sq, shifted.odd)});
}

template <typename Weights>
SF_HOST_DEVICE void write_bytes(const EightBitTile& tile, const DecodedChunk& chunk, int piece, const Words& words) {
  const int64_t first = chunk.first + piece * kPiece;
  const Block* const from = chunk.blocks + 2 * piece;
  if constexpr (Weights::has_remainder) {
    store(tile.weights.remainder + first, joined_bytes(words_right<8>(words.remainder[0]), words.remainder[1]));
  }
  store(tile.exp_avg + first, first_codes(words.exp_avg));
  store(tile.exp_avg_sq + first, second_codes(words.exp_avg_sq, from[0].exp_avg_sq, from[1].exp_avg_sq));
}

template <int RULE, typename Weights, bool IS_BOXED, typename Redo>
void update_eight_bit_by(const EightBitTile& given_tile, const Row& given_row, const Redo& redo) {
  const EightBitTile tile = given_tile;  // copies that no store can alias
  const Row row = given_row;
  DecodedChunk chunks[2];
  const DecodedChunk* before = nullptr;  // the one that is to be written yet
  for (int64_t first = 0; first < tile.count; first += kChunk) {
    DecodedChunk& chunk = chunks[first / kChunk % 2];
    chunk.first = first;
    alignas(64) float scale[kBlocks], scale_sq[kBlocks];
    for (int b = 0; b < kBlocks; ++b) scale[b] = scale_value(tile.exp_avg_scale[first / kBlock + b]);
    for (int b = 0; b < kBlocks; ++b) scale_sq[b] = scale_value(tile.exp_avg_sq_scale[first / kBlock + b]);
    Survey survey;
    Bits next = unmixed(tile.stream, first - kChunk);
    for (int block = 0; block < kBlocks; block += 2) {
      const int64_t at = first + block * kBlock;
      const Bits codes = load<Bits>(tile.exp_avg + at);
      survey.code = larger_bytes(survey.code, codes & all<0x7F7F7F7F>());
      survey.code_sq = larger_bytes(survey.code_sq, load<Bits>(tile.exp_avg_sq + at));
      __builtin_prefetch(tile.exp_avg + at + kAhead);
      __builtin_prefetch(tile.exp_avg_sq + at + kAhead);
      const Halves<Bits> as_float16 = first_as_float16(codes);
      Words words;
      if (before) write_block<Weights>(tile, *before, block, next, words);
      update_block<RULE, Weights, IS_BOXED, 0>(tile, row, at, as_float16, scale, scale_sq, block, chunk, survey);
      if (before) write_block<Weights>(tile, *before, block + 1, next, words);
      update_block<RULE, Weights, IS_BOXED, 1>(tile, row, at + kBlock, as_float16, scale, scale_sq, block + 1, chunk,
                                               survey);
      if (before) write_bytes<Weights>(tile, *before, block / 2, words);
    }
    before = write_scales(tile, survey, chunk) ? &chunk : nullptr;
    if (!before) redo(first, first + kChunk);
  }
  if (!before) return;
  Bits next = unmixed(tile.stream, before->first);
  for (int block = 0; block < kBlocks; block += 2) {
    Words words;
    for (int b = 0; b < 2; ++b) write_block<Weights>(tile, *before, block + b, next, words);
    write_bytes<Weights>(tile, *before, block / 2, words);
  }
}

template <int RULE, typename Weights, typename Redo>
void update_eight_bit_by(const EightBitTile& tile, const Row& row, const Redo& redo) {
  const bool is_boxed = row.low > -__builtin_inff() || row.high < __builtin_inff();
  (is_boxed ? update_eight_bit_by<RULE, Weights, true, Redo>
            : update_eight_bit_by<RULE, Weights, false, Redo>)(tile, row, redo);
}

// Whether a record, of which no gradients are summed up, is one of those that this is for.
inline bool is_eight_bit(const Record& record, int32_t rule) {
  const Format format = format_of(record.format);
  const bool is_kept = format.master == kNoMaster || format.master == kStochastic || format.master == kSplit8;
  return (format.param == kBfloat16 ? is_kept : format.param == kFloat32) && record.grad_dtype == format.param &&
         format.state == kState8 && (rule == 0 || rule == kL2);
}

template <typename Weights, typename Redo>
void update_eight_bit_of(const EightBitTile& tile, const Row& row, const Redo& redo) {
  (row.rule == kL2 ? update_eight_bit_by<kL2, Weights, Redo> : update_eight_bit_by<0, Weights, Redo>)(tile, row, redo);
}

// Calls `redo` with where unusual chunks, of which nothing has been written, begin and end.
template <typename Redo>
void update_eight_bit(const EightBitTile& tile, const Format& format, const Row& row, const Redo& redo) {
  if (format.param == kFloat32) return update_eight_bit_of<Float32Weights>(tile, row, redo);
  switch (format.master) {
    case kSplit8:
      return update_eight_bit_of<Bfloat16Weights<kSplit8>>(tile, row, redo);
    case kStochastic:
      return update_eight_bit_of<Bfloat16Weights<kStochastic>>(tile, row, redo);
    default:
      return update_eight_bit_of<Bfloat16Weights<kNoMaster>>(tile, row, redo);
  }
}

#else

inline bool is_eight_bit(const Record&, int32_t) { return false; }

template <typename Redo>
void update_eight_bit(const EightBitTile&, const Format&, const Row&, const Redo&) {}

#endif

}  // namespace
}  // namespace sf
