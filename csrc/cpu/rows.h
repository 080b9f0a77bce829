// Brings the hyperparameter rows of a table to the coming step.
#pragma once

#include "tables.h"

namespace sf {

// The arrays that update_rows() reads and writes. The host builds it (stackelberg_fused/layout/rows.py) as an array of
// addresses and counts in this order.
struct RowTable {
  Row* rows;
  const GroupScalars* groups;
  const int64_t* row_group;       // [num_rows]
  const int64_t* representative;  // [num_rows]: a slot of each row
  const uint8_t* row_ready;       // [num_rows]: momentum_ready of each row's slots
  const int64_t* slot_row;        // [num_slots]
  const float* step_counts;       // [num_slots]: steps taken
  const uint8_t* momentum_ready;  // [num_slots]: 0 where the coming step creates the momentum buffer
  const float* waited;            // [num_slots]: see csrc/turn.h
  int64_t num_rows;
  int64_t num_slots;
};

constexpr float kLargestCount = 9007199254740992.0f;  // 2^53: beyond it double skips numbers

// Returns the first slot whose step count or `waited` is negative, NaN or too large to count on from; -1 if there is
// none.
int64_t find_bad_count(const RowTable& table);

// Writes the fields of rows that depend on step counts and rates; find_bad_count() has to be -1. Returns false, and
// writes nothing, if slots of one row differ in step count, readiness or waiting: then the host has to regroup them.
bool update_rows(const RowTable& table);

}  // namespace sf
