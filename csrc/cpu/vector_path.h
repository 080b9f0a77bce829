// Adam on whole chunks of parameters of any scheme, by AVX-512. The fewer bytes a scheme moves, the more it is
// arithmetic that sets the time and not memory. This path takes a quarter of the time of the passes in low_precision.h,
// or less, and gives the same bits:
// - numbers stay in the lanes into which they are unpacked (avx512.h), and in registers while the rule is applied;
// - every step of the codec is one or two instructions (avx512_codec.h);
// - a chunk is read and updated in one loop and written in another, because the constants of both together would not
//   fit into the registers.
// Nothing of a chunk is written until all of it is known to be in range. Other chunks are left to low_precision.h.
#pragma once

#include "cpu/avx512_moments.h"
#include "cpu/avx512_weights.h"
#include "cpu/chunk.h"
#include "format.h"
#include "update_rule.h"

namespace sf {
namespace {

// Addresses of the whole chunks of a tile.
struct VectorTile {
  TileWeights weights;
  TileMoments moments;
  Stream stream;
  uint32_t first;  // place of the first element in the stream; even
  int64_t count;
};

// True for the rules that this path has.
inline bool has_vector_path(int32_t rule) {
#if SF_AVX512
  return rule == 0 || rule == kL2 || rule == kCautious;
#else
  return false;
#endif
}

#if SF_AVX512

constexpr int kAhead = 2 * kChunk;  // distance of prefetches, in elements

struct alignas(64) Block {
  float weight[kBlock], exp_avg[kBlock], exp_avg_sq[kBlock];
};

// A chunk in float32, after its update and before it is written.
template <typename Moments>
struct alignas(64) DecodedChunk {
  Block blocks[kBlocks];
  typename Moments::Scaling scaling;
};

// What is left to write of a pair of blocks, whose bytes fill a vector.
template <typename Moments>
struct Words {
  typename Moments::Words moments;
  Bits remainder[2];
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

// Updates block B of a pair, 0 or 1. `range` is that of Weights::add_to_range().
template <int RULE, int B, typename Weights, typename Moments>
SF_HOST_DEVICE void update_block(const VectorTile& tile, const Row& row, int64_t at, int block, Moments& moments,
                                 Block& to, Numbers& range) {
  EvenOdd<Numbers> weight = Weights::read(tile.weights, at);
  const EvenOdd<Numbers> grad = read_grad(tile.weights, at, kAhead);
  Weights::prefetch(tile.weights, at + kAhead);
  MomentsOfBlock of = moments.template read<B>(tile.moments, at, block);
  Numbers none;
  adam_update<RULE, Avx512Arithmetic>(row, weight.even, grad.even, of.exp_avg.even, of.exp_avg_sq.even, none);
  adam_update<RULE, Avx512Arithmetic>(row, weight.odd, grad.odd, of.exp_avg.odd, of.exp_avg_sq.odd, none);
  range = Weights::add_to_range(Weights::add_to_range(range, weight.even), weight.odd);
  moments.observe(block, of);
  store_pair(to.weight, weight);
  store_pair(to.exp_avg, of.exp_avg);
  store_pair(to.exp_avg_sq, of.exp_avg_sq);
}

// The words from which the hash makes the random numbers of the block at `first` of a stream, one per two elements.
SF_HOST_DEVICE Bits unmixed_words(const Stream& stream, uint32_t first) {
  const Bits lanes = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
  return lanes * kIndexStride + (stream.first + first / 2 * kIndexStride);
}

// Writes a block to element `at` of the tile and on, but for what is written by pairs.
template <typename Weights, typename Moments>
SF_HOST_DEVICE void write_block(const VectorTile& tile, int64_t at, const DecodedChunk<Moments>& chunk, int block,
                                Bits& next, Words<Moments>& words) {
  const Block& from = chunk.blocks[block];
  const Bits mixed = mixed_bits(tile.stream, next);
  next += broadcast<kBlock / 2 * kIndexStride>();
  const Bits upper = mixed >> 16;  // the last step of random_word() leaves the upper 16 bits unchanged
  const EvenOdd<Bits> random = {masked_xor<0xFFFF>(mixed, upper), upper};
  words.remainder[block % 2] = Weights::write(tile.weights, at, load_pair<Bits>(from.weight), random);
  Moments::write_block(tile.moments, at, from.exp_avg, from.exp_avg_sq, random, chunk.scaling, block, words.moments);
}

template <typename Weights, typename Moments>
SF_HOST_DEVICE void write_pair(const VectorTile& tile, int64_t at, const DecodedChunk<Moments>& chunk, int block,
                               const Words<Moments>& words) {
  const Block* const from = chunk.blocks + block;
  Weights::write_remainders(tile.weights, at, words.remainder);
  Moments::write_pair(tile.moments, at, {from[0].exp_avg_sq, from[1].exp_avg_sq}, words.moments);
}

template <int RULE, typename Weights, typename Moments, typename Fallback>
void update_by(const VectorTile& given_tile, const Row& given_row, const Fallback& fallback) {
  const VectorTile tile = given_tile;  // copies that no store can alias
  const Row row = given_row;
  const bool is_boxed = row.low > -__builtin_inff() || row.high < __builtin_inff();
  DecodedChunk<Moments> chunk;
  for (int64_t first = 0; first < tile.count; first += kChunk) {
    Moments moments(tile.moments, first);
    Numbers range = Numbers{};
    for (int block = 0; block < kBlocks; block += 2) {
      const int64_t at = hidden(first + block * kBlock);
      moments.begin_pair(tile.moments, at);
      Moments::prefetch_pair(tile.moments, at + kAhead);
      Block* const to = chunk.blocks + block;
      update_block<RULE, 0, Weights>(tile, row, at, block, moments, to[0], range);
      update_block<RULE, 1, Weights>(tile, row, at + kBlock, block + 1, moments, to[1], range);
    }
    if (is_boxed) {
      for (Block& of : chunk.blocks) {
        for (float& x : of.weight) x = project(row, x);
      }
    }
    if (!Weights::is_in_range(range) || !moments.finish(tile.moments, first, chunk.scaling)) {
      fallback(first, first + kChunk);
      continue;
    }
    Bits next = unmixed_words(tile.stream, tile.first + static_cast<uint32_t>(first));
    for (int block = 0; block < kBlocks; block += 2) {
      const int64_t at = hidden(first + block * kBlock);
      Words<Moments> words;
      write_block<Weights>(tile, at, chunk, block, next, words);
      write_block<Weights>(tile, at + kBlock, chunk, block + 1, next, words);
      write_pair<Weights>(tile, at, chunk, block, words);
    }
  }
}

template <typename Weights, typename Moments, typename Fallback>
void update_by_rule(const VectorTile& tile, const Row& row, const Fallback& fallback) {
  switch (row.rule) {
    case kL2:
      return update_by<kL2, Weights, Moments>(tile, row, fallback);
    case kCautious:
      return update_by<kCautious, Weights, Moments>(tile, row, fallback);
    default:
      return update_by<0, Weights, Moments>(tile, row, fallback);
  }
}

// Float32 with float32 state is no record of fewer bits: that is updated where it lies.
template <int PARAM, int MASTER, typename Fallback>
void update_by_state(const VectorTile& tile, int32_t state, const Row& row, const Fallback& fallback) {
  switch (state) {
    case kState8:
      return update_by_rule<Weights<PARAM, MASTER>, Moments<kState8>>(tile, row, fallback);
    case kState16:
      return update_by_rule<Weights<PARAM, MASTER>, Moments<kState16>>(tile, row, fallback);
    default:
      if constexpr (PARAM != kFloat32) update_by_rule<Weights<PARAM, MASTER>, Moments<kState32>>(tile, row, fallback);
  }
}

// Every pair of a parameter's dtype and a master that exists.
#define SF_FOR_EACH_WEIGHT(X) \
  X(kFloat32, kNoMaster)      \
  X(kBfloat16, kNoMaster)     \
  X(kBfloat16, kStochastic)   \
  X(kBfloat16, kKahan)        \
  X(kBfloat16, kSplit16)      \
  X(kBfloat16, kSplit8)       \
  X(kBfloat16, kMaster32)     \
  X(kFloat16, kNoMaster)      \
  X(kFloat16, kStochastic)    \
  X(kFloat16, kKahan)         \
  X(kFloat16, kMaster32)

// Updates a tile's whole chunks by a rule that has this path. It calls fallback(begin, end) for each chunk that is out
// of range, of which nothing has been written.
template <typename Fallback>
void update_by_vectors(const VectorTile& tile, const Format& format, const Row& row, const Fallback& fallback) {
  switch (format.param << 4 | format.master) {
#define SF_CASE(param, master)  \
  case (param) << 4 | (master): \
    return update_by_state<param, master>(tile, format.state, row, fallback);
    SF_FOR_EACH_WEIGHT(SF_CASE)
#undef SF_CASE
  }
}

#else

template <typename Fallback>
void update_by_vectors(const VectorTile&, const Format&, const Row&, const Fallback&) {}

#endif

}  // namespace
}  // namespace sf
