// Tables for tests in C++: what stackelberg_fused/layout/tiles.py makes of a parameter.
#pragma once

#include <vector>

#include "tables.h"

namespace sf {

// Appends a record with its tiles. `start` is the index of its first element in the whole parameter, of which it is a
// part whose elements lie side by side there.
inline void append(std::vector<Record>& records, std::vector<Tile>& tiles, Record record, int64_t start = 0) {
  const int64_t row = record.block_row;
  for (int64_t offset = 0; offset < record.numel;) {
    int64_t count = kTileElements - (start + offset) % kTileElements;  // up to where a stream of random numbers ends
    if (row) {
      const int64_t left = row - offset % row;
      count = row <= kTileElements ? kTileElements / row * row : left < kTileElements ? left : kTileElements;
    }
    if (count > record.numel - offset) count = record.numel - offset;
    tiles.push_back({static_cast<int32_t>(records.size()), static_cast<int32_t>(count), offset, start + offset});
    offset += count;
    ++record.tiles;
  }
  records.push_back(record);
}

}  // namespace sf
