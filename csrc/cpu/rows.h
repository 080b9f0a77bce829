// Brings the hyperparameter rows of a table to the coming step.
#pragma once

#include "tables.h"

namespace sf {

// Everything update_rows() reads; the host builds it (stackelberg_fused/hyperparameters.py) as an array of addresses
// and counts in this order.
struct RowTable {
  Row* rows;
  const GroupScalars* groups;
  const int64_t* row_group;       // [num_rows]
  const int64_t* representative;  // [num_rows]: a slot of each row
  const uint8_t* row_ready;       // [num_rows]: momentum_ready of each row's slots
  const int64_t* slot_row;        // [num_slots]
  const float* step_counts;       // [num_slots]: steps taken
  const uint8_t* momentum_ready;  // [num_slots]: 0 where the coming step creates the momentum buffer
  int64_t num_rows;
  int64_t num_slots;
};

// Writes what depends on step counts and rates. False, and nothing is written, where the slots of a row no longer agree
// in step count and readiness, or a count is none: the host has to look, and to group them again.
bool update_rows(const RowTable& table);

}  // namespace sf
