// What both native modules register: the layout of the tables, so that a test can hold it against the host's.
#pragma once

#include <pybind11/pybind11.h>

#include "tables.h"

namespace sf {

// Addresses and numbers in the order in which the host passes them.
inline StepArgs step_args(int64_t records, int64_t tiles, int64_t rows, int64_t first_tile, int64_t num_tiles,
                          int64_t first_head_tile, int64_t signals, int32_t rule) {
  StepArgs args{};
  args.records = reinterpret_cast<const Record*>(records);
  args.tiles = reinterpret_cast<const Tile*>(tiles);
  args.rows = reinterpret_cast<const Row*>(rows);
  args.first_tile = first_tile;
  args.num_tiles = num_tiles;
  args.first_head_tile = first_head_tile;
  args.signals = reinterpret_cast<const Signals*>(signals);
  args.rule = rule;
  return args;
}

inline StatisticsArgs statistics_args(int64_t records, int64_t tiles, int64_t first_tile, int64_t num_tiles,
                                      int64_t first_head_tile, int64_t tile_sums, int64_t signals, double max_body,
                                      double max_head, bool joint) {
  StatisticsArgs args{};
  args.records = reinterpret_cast<const Record*>(records);
  args.tiles = reinterpret_cast<const Tile*>(tiles);
  args.first_tile = first_tile;
  args.num_tiles = num_tiles;
  args.first_head_tile = first_head_tile;
  args.tile_sums = reinterpret_cast<double*>(tile_sums);
  args.signals = reinterpret_cast<Signals*>(signals);
  args.max_norm[0] = max_body;
  args.max_norm[1] = max_head;
  args.joint = joint;
  return args;
}

inline void register_tables(pybind11::module_& m) {
  m.attr("TILE_ELEMENTS") = kTileElements;

  pybind11::dict record;
#define SF_FIELD(dict, type, name) dict[#name] = offsetof(type, name)
  SF_FIELD(record, Record, param);
  SF_FIELD(record, Record, grad);
  SF_FIELD(record, Record, exp_avg);
  SF_FIELD(record, Record, exp_avg_sq);
  SF_FIELD(record, Record, max_exp_avg_sq);
  SF_FIELD(record, Record, numel);
  SF_FIELD(record, Record, row);
  m.attr("RECORD_OFFSETS") = record;
  m.attr("RECORD_BYTES") = sizeof(Record);

  pybind11::dict row;
  SF_FIELD(row, Row, rule);
  SF_FIELD(row, Row, grad_sign);
  SF_FIELD(row, Row, weight_decay);
  SF_FIELD(row, Row, param_decay);
  SF_FIELD(row, Row, lerp_weight);
  SF_FIELD(row, Row, beta2);
  SF_FIELD(row, Row, one_minus_beta2);
  SF_FIELD(row, Row, step_size);
  SF_FIELD(row, Row, eps);
  SF_FIELD(row, Row, momentum);
  SF_FIELD(row, Row, one_minus_dampening);
  m.attr("ROW_OFFSETS") = row;
  m.attr("ROW_BYTES") = sizeof(Row);

  pybind11::dict group;
  SF_FIELD(group, GroupScalars, lr);
  SF_FIELD(group, GroupScalars, beta1);
  SF_FIELD(group, GroupScalars, beta2);
  SF_FIELD(group, GroupScalars, eps);
  SF_FIELD(group, GroupScalars, decay);
  m.attr("GROUP_OFFSETS") = group;
  m.attr("GROUP_BYTES") = sizeof(GroupScalars);

  pybind11::dict signals;
  SF_FIELD(signals, Signals, sum_sq);
  SF_FIELD(signals, Signals, norm);
  SF_FIELD(signals, Signals, total_norm);
  SF_FIELD(signals, Signals, factor);
  SF_FIELD(signals, Signals, blocks_done);
#undef SF_FIELD
  m.attr("SIGNALS_OFFSETS") = signals;
  m.attr("SIGNALS_BYTES") = sizeof(Signals);

  pybind11::dict rule;
  rule["SGD"] = static_cast<int>(kSgd);
  rule["AMSGRAD"] = static_cast<int>(kAmsgrad);
  rule["L2"] = static_cast<int>(kL2);
  rule["MOMENTUM"] = static_cast<int>(kMomentum);
  rule["NESTEROV"] = static_cast<int>(kNesterov);
  m.attr("RULE_FLAGS") = rule;
  pybind11::list rules;
#define SF_RULE_ENTRY(rule) rules.append(static_cast<int>(rule));
  SF_FOR_EACH_RULE(SF_RULE_ENTRY)
#undef SF_RULE_ENTRY
  m.attr("RULES") = rules;
}

}  // namespace sf
