// Updates a tile that is not float32 with float32 state: a chunk at a time it is decoded into arrays of float32,
// updated there as any other, and encoded. Part of step.cpp, and compiled with it for each instruction set.
#pragma once

#include "cpu/chunk.h"
#include "cpu/elements.h"
#include "cpu/moments.h"
#include "cpu/weights.h"
#include "format.h"
#include "random_bits.h"
#include "tables.h"

namespace sf {
namespace {

struct LowPrecisionTile {
  const Record& record;
  Format format;
  Row row;  // its box rounded to the parameter's dtype
  TileRandom random;
  int64_t offset;
};

LowPrecisionTile low_precision_tile(const Record& record, const Row& given, const Tile& tile) {
  const Format format = format_of(record.format);
  Row row = given;
  row.low = rounded_inside(row.low, format.param, true);
  row.high = rounded_inside(row.high, format.param, false);
  return {record, format, row, tile_random(record.key, row.step, tile.whole), tile.offset};
}

// Updates the elements from `begin` to `end` within the tile; `grad` points to the gradient of the first of them.
void update_chunks(const LowPrecisionTile& tile, const float* grad, int64_t begin, int64_t end) {
  const auto& [record, format, row, of_tile, offset] = tile;
  const bool is_decoded = format.state != kState32;
  alignas(64) float weight[kChunk], decoded[3][kChunk];
  alignas(64) uint32_t random[kChunk];
  for (int64_t done = begin, left; done < end; done += left) {
    const int64_t first = offset + done, block = block_of(record, first);
    left = end - done < kChunk ? end - done : kChunk;
    if (record.block_row >= kChunk) {
      const int64_t in_row = record.block_row - first % record.block_row;
      left = left < in_row ? left : in_row;
    } else if (record.block_row && left == kChunk) {
      left = kChunk / record.block_row * record.block_row;  // whole rows
    }
    if (uses_random_bits(format)) {
      draw_random_bits(of_tile, static_cast<uint32_t>(done), static_cast<uint32_t>(left), random);
    }
    read_weights(record, format, first, left, weight);
    float* moments[3] = {};
    for_each_moment(record, row.rule, [&](auto code, const Moment& moment, int k) {
      moments[k] = is_decoded ? decoded[k] : pointer<float>(moment.address, first);
      if (is_decoded)
        read_moments<decltype(code)>(format.state, moment, {first, block, record.block_row}, left, decoded[k]);
    });
    update_by_rule(row,
                   {weight, grad + done - begin, moments[0], moments[1], moments[2], pointer<float>(record.ema, first)},
                   left);
    write_weights(record, format, first, left, weight, random);
    if (!is_decoded) continue;
    for_each_moment(record, row.rule, [&](auto code, const Moment& moment, int k) {
      write_moments<decltype(code)>(format.state, decoded[k], random, moment, {first, block, record.block_row}, left);
    });
  }
}

void update_low_precision_tile(const Record& record, const Row& row, const float* grad, const Tile& tile) {
  update_chunks(low_precision_tile(record, row, tile), grad, 0, tile.count);
}

}  // namespace
}  // namespace sf
