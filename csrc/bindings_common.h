// What both native modules register: the layout of the tables, so that a test can hold it against the host's.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <string_view>
#include <type_traits>

#include "tables.h"

namespace sf {

// What the host packs (stackelberg_fused/backends/launch_args.py) for a launch.
template <typename Args>
Args unpack(std::string_view bytes) {
  static_assert(std::is_trivially_copyable_v<Args>);
  if (bytes.size() != sizeof(Args)) throw pybind11::value_error("these are not the arguments of this launch");
  Args args;
  std::memcpy(&args, bytes.data(), sizeof(Args));
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
  SF_FIELD(record, Record, ema);
  SF_FIELD(record, Record, grad_sum);
  SF_FIELD(record, Record, set);
  SF_FIELD(record, Record, row_length);
  SF_FIELD(record, Record, row_stride);
  SF_FIELD(record, Record, row_count);
  SF_FIELD(record, Record, format);
  SF_FIELD(record, Record, grad_dtype);
  SF_FIELD(record, Record, key);
  SF_FIELD(record, Record, master);
  SF_FIELD(record, Record, exp_avg_scale);
  SF_FIELD(record, Record, exp_avg_sq_scale);
  SF_FIELD(record, Record, max_exp_avg_sq_scale);
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
  SF_FIELD(row, Row, ema_weight);
  SF_FIELD(row, Row, mean_weight);
  SF_FIELD(row, Row, low);
  SF_FIELD(row, Row, high);
  SF_FIELD(row, Row, turn);
  SF_FIELD(row, Row, step);
  m.attr("ROW_OFFSETS") = row;
  m.attr("ROW_BYTES") = sizeof(Row);

  pybind11::dict group;
  SF_FIELD(group, GroupScalars, lr);
  SF_FIELD(group, GroupScalars, beta1);
  SF_FIELD(group, GroupScalars, beta2);
  SF_FIELD(group, GroupScalars, eps);
  SF_FIELD(group, GroupScalars, decay);
  SF_FIELD(group, GroupScalars, lr_address);
  SF_FIELD(group, GroupScalars, lr_is_double);
  SF_FIELD(group, GroupScalars, update_every);
  m.attr("GROUP_OFFSETS") = group;
  m.attr("GROUP_BYTES") = sizeof(GroupScalars);

  pybind11::dict joint_set;
  SF_FIELD(joint_set, JointSet, kind);
  SF_FIELD(joint_set, JointSet, size);
  SF_FIELD(joint_set, JointSet, smallest);
  SF_FIELD(joint_set, JointSet, largest);
  SF_FIELD(joint_set, JointSet, first_tile);
  SF_FIELD(joint_set, JointSet, num_tiles);
  m.attr("JOINT_SET_OFFSETS") = joint_set;
  m.attr("JOINT_SET_BYTES") = sizeof(JointSet);
  m.attr("JOINT_SET_KINDS") = pybind11::make_tuple(static_cast<int>(kBall), static_cast<int>(kSimplex));

  pybind11::dict gradient_statistics;
  SF_FIELD(gradient_statistics, GradientStatistics, sum_sq);
  SF_FIELD(gradient_statistics, GradientStatistics, norm);
  SF_FIELD(gradient_statistics, GradientStatistics, total_norm);
  SF_FIELD(gradient_statistics, GradientStatistics, factor);
  SF_FIELD(gradient_statistics, GradientStatistics, blocks_done);
  m.attr("GRADIENT_STATISTICS_OFFSETS") = gradient_statistics;
  m.attr("GRADIENT_STATISTICS_BYTES") = sizeof(GradientStatistics);

  pybind11::dict step;
  SF_FIELD(step, StepArgs, records);
  SF_FIELD(step, StepArgs, tiles);
  SF_FIELD(step, StepArgs, rows);
  SF_FIELD(step, StepArgs, first_tile);
  SF_FIELD(step, StepArgs, num_tiles);
  SF_FIELD(step, StepArgs, first_head_tile);
  SF_FIELD(step, StepArgs, rule);
  SF_FIELD(step, StepArgs, zero_grads);
  SF_FIELD(step, StepArgs, takes_turns);
  SF_FIELD(step, StepArgs, is_low_precision);
  SF_FIELD(step, StepArgs, statistics);
  SF_FIELD(step, StepArgs, grad_scale);
  SF_FIELD(step, StepArgs, found_inf);
  SF_FIELD(step, StepArgs, groups);
  SF_FIELD(step, StepArgs, steps);
  SF_FIELD(step, StepArgs, ready);
  SF_FIELD(step, StepArgs, waited);
  SF_FIELD(step, StepArgs, arrived);
  SF_FIELD(step, StepArgs, sets);
  SF_FIELD(step, StepArgs, set_sums);
  SF_FIELD(step, StepArgs, set_factors);
  SF_FIELD(step, StepArgs, set_tiles_done);
  SF_FIELD(step, StepArgs, moved);
  m.attr("STEP_ARGS_OFFSETS") = step;
  m.attr("STEP_ARGS_BYTES") = sizeof(StepArgs);

  pybind11::dict project;
  SF_FIELD(project, ProjectArgs, records);
  SF_FIELD(project, ProjectArgs, rows);
  SF_FIELD(project, ProjectArgs, sets);
  SF_FIELD(project, ProjectArgs, pieces);
  SF_FIELD(project, ProjectArgs, first_piece);
  SF_FIELD(project, ProjectArgs, num_pieces);
  SF_FIELD(project, ProjectArgs, set_sums);
  SF_FIELD(project, ProjectArgs, set_factors);
  SF_FIELD(project, ProjectArgs, moved);
  SF_FIELD(project, ProjectArgs, found_inf);
  m.attr("PROJECT_ARGS_OFFSETS") = project;
  m.attr("PROJECT_ARGS_BYTES") = sizeof(ProjectArgs);

  pybind11::dict statistics;
  SF_FIELD(statistics, StatisticsArgs, records);
  SF_FIELD(statistics, StatisticsArgs, tiles);
  SF_FIELD(statistics, StatisticsArgs, first_tile);
  SF_FIELD(statistics, StatisticsArgs, num_tiles);
  SF_FIELD(statistics, StatisticsArgs, first_head_tile);
  SF_FIELD(statistics, StatisticsArgs, tile_sums);
  SF_FIELD(statistics, StatisticsArgs, statistics);
  SF_FIELD(statistics, StatisticsArgs, max_norm);
  SF_FIELD(statistics, StatisticsArgs, joint);
  SF_FIELD(statistics, StatisticsArgs, takes_turns);
  SF_FIELD(statistics, StatisticsArgs, grad_scale);
  SF_FIELD(statistics, StatisticsArgs, rows);
  SF_FIELD(statistics, StatisticsArgs, groups);
  SF_FIELD(statistics, StatisticsArgs, waited);
#undef SF_FIELD
  m.attr("STATISTICS_ARGS_OFFSETS") = statistics;
  m.attr("STATISTICS_ARGS_BYTES") = sizeof(StatisticsArgs);

  pybind11::dict rule;
  rule["SGD"] = static_cast<int>(kSgd);
  rule["AMSGRAD"] = static_cast<int>(kAmsgrad);
  rule["L2"] = static_cast<int>(kL2);
  rule["MOMENTUM"] = static_cast<int>(kMomentum);
  rule["NESTEROV"] = static_cast<int>(kNesterov);
  rule["EMA"] = static_cast<int>(kEma);
  m.attr("RULE_FLAGS") = rule;
  pybind11::list rules;
#define SF_RULE_ENTRY(rule) rules.append(static_cast<int>(rule));
  SF_FOR_EACH_RULE(SF_RULE_ENTRY)
#undef SF_RULE_ENTRY
  m.attr("RULES") = rules;
}

}  // namespace sf
