// Registrations of both native modules: the layout of the tables, so that tests/native/test_tables.py can compare it
// with the host's.
#pragma once

#include <pybind11/pybind11.h>

#include <cstring>
#include <string_view>
#include <type_traits>

#include "exact_sum.h"
#include "launch_args.h"
#include "tables.h"

namespace sf {

// The arguments of a launch from the bytes that the host has packed (stackelberg_fused/backends/launch_args.py).
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

#define SF_REGISTER_FIELD(type, name) offsets[#name] = offsetof(Struct, name);
#define SF_REGISTER(prefix, type, FIELDS)   \
  {                                         \
    using Struct = type;                    \
    pybind11::dict offsets;                 \
    FIELDS(SF_REGISTER_FIELD)               \
    m.attr(prefix "_OFFSETS") = offsets;    \
    m.attr(prefix "_BYTES") = sizeof(type); \
  }
  SF_REGISTER("RECORD", Record, SF_RECORD_FIELDS)
  SF_REGISTER("TILE", Tile, SF_TILE_FIELDS)
  SF_REGISTER("ROW", Row, SF_ROW_FIELDS)
  SF_REGISTER("GROUP", GroupScalars, SF_GROUP_FIELDS)
  SF_REGISTER("JOINT_SET", JointSet, SF_JOINT_SET_FIELDS)
  SF_REGISTER("GRADIENT_STATISTICS", GradientStatistics, SF_GRADIENT_STATISTICS_FIELDS)
  SF_REGISTER("STATISTICS_ARGS", StatisticsArgs, SF_STATISTICS_ARGS_FIELDS)
  SF_REGISTER("STEP_ARGS", StepArgs, SF_STEP_ARGS_FIELDS)
  SF_REGISTER("PROJECT_ARGS", ProjectArgs, SF_PROJECT_ARGS_FIELDS)
#undef SF_REGISTER
#undef SF_REGISTER_FIELD
  m.attr("JOINT_SET_KINDS") = pybind11::make_tuple(static_cast<int>(kBall), static_cast<int>(kSimplex));

  pybind11::dict exact_sum;
  exact_sum["DIGIT_BITS"] = kDigitBits;
  exact_sum["LOWEST_KERNEL_EXPONENT"] = kLowestExponent;
  exact_sum["KERNEL_DIGITS"] = kDigits;
  exact_sum["KERNEL_WORDS"] = kExactSumWords;
  exact_sum["FIRST_KERNEL_DIGIT"] = kFirstHostDigit;
  exact_sum["WORDS"] = kHostWords;
  exact_sum["COPIES"] = kSumCopies;
  m.attr("EXACT_SUM") = exact_sum;

  pybind11::dict flags;
#define SF_REGISTER_FLAG(enumerator, name, bit) flags[#name] = bit;
  SF_RULE_FLAGS(SF_REGISTER_FLAG)
#undef SF_REGISTER_FLAG
  m.attr("RULE_FLAGS") = flags;

  pybind11::list rules;
#define SF_REGISTER_RULE(rule) rules.append(static_cast<int>(rule));
  SF_FOR_EACH_RULE(SF_REGISTER_RULE)
#undef SF_REGISTER_RULE
  m.attr("RULES") = rules;
}

}  // namespace sf
