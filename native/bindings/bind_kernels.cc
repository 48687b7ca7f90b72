// Kernels by name, for tests and probes, and the packing of weights.
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <string>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "kernels/dispatch.h"
#include "kernels/mxfp4_decode.h"
#include "kernels/mxfp4_encode.h"
#include "model/activations.h"
#include "model/weights.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace aperto {
namespace {

std::vector<std::string> isa_names() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->name);
  return names;
}

void check_multiple(const char* name, size_t value, size_t step) {
  check(value > 0 && value % step == 0, name, " is ", value, "; expected a positive multiple of ",
        step);
}

Array<float> rmsnorm(const std::string& isa, In1<float> x, In1<float> weight, float eps) {
  check_multiple("the width", x.size(), kLanes);
  check(weight.size() == x.size(), "weight has ", weight.size(), " values; expected ", x.size());
  auto y = new_array<float>({x.size()});
  select_kernels(isa).f32_rmsnorm(x.data(), weight.data(), eps, x.size(), y.data());
  return y;
}

nb::tuple quantize_q8(const std::string& isa, In2<float> x, int32_t offset) {
  const size_t rows = x.shape(0);
  const size_t k = x.shape(1);
  check_multiple("the width", k, kBlock);
  auto values = new_array<int8_t>({rows, k});
  auto scales = new_array<float>({rows, k / kBlock});
  auto starts = new_array<int32_t>({rows, k / kBlock});
  select_kernels(isa).f32_quantize_q8(x.data(), rows * k, offset, 1, values.data(), scales.data(),
                                      starts.data());
  return nb::make_tuple(values, scales, starts);
}

// A whole product a w^T through one kernel; `kind` names the weight's tiles.
Array<float> matmul(const std::string& isa, const std::string& kind, In1<uint8_t> tiles,
                    size_t weight_rows, In2<float> a, In1<int32_t> rows, bool quantized) {
  const Kernels& kernels = select_kernels(isa);
  const WeightKind weight_kind = parse_weight_kind(kind);
  const size_t k = a.shape(1);
  check_multiple("the width", k, kBlock);
  check_multiple("weight_rows", weight_rows, kTileRows);
  check(tiles.size() == tiles_bytes(weight_kind, weight_rows, k), "tiles has ", tiles.size(),
        " bytes; expected ", tiles_bytes(weight_kind, weight_rows, k));
  for (size_t i = 0; i < rows.size(); ++i) {
    check(rows.data()[i] >= 0 && static_cast<size_t>(rows.data()[i]) < a.shape(0), "row ",
          rows.data()[i], " is out of range");
  }
  const bool mxfp4 = weight_kind == WeightKind::kMxfp4Tiles;
  Q8Buffer buffer(rows.size(), k);
  const Q8Panels q8 = buffer.panels(k, rows.size());
  for (size_t i = 0; i < rows.size(); ++i) {
    quantize_row(kernels, a.data() + rows.data()[i] * k, i, mxfp4 ? kMxfp4Offset : kQ8Offset, q8);
  }
  AlignedBuffer<uint8_t> scratch(kTileRows * k);
  const F32Rows f32 = {a.data(), k};
  auto out = new_array<float>({rows.size(), weight_rows});
  const size_t tile_bytes = tiles.size() / (weight_rows / kTileRows);
  for (size_t tile = 0; tile < weight_rows / kTileRows; ++tile) {
    const uint8_t* data = tiles.data() + tile * tile_bytes;
    float* target = out.data() + tile * kTileRows;
    if (weight_kind == WeightKind::kQ8Tiles) {
      kernels.q8_q8w_matmul(data, q8, scratch.data(), target, weight_rows);
    } else if (mxfp4 && quantized) {
      kernels.q8_mxfp4w_matmul(data, q8, scratch.data(), target, weight_rows);
    } else if (mxfp4) {
      kernels.f32_mxfp4w_matmul(data, f32, rows.data(), rows.size(), target, weight_rows);
    } else if (weight_kind == WeightKind::kBf16Tiles) {
      kernels.f32_bf16w_matmul(data, f32, rows.data(), rows.size(), target, weight_rows);
    } else {
      kernels.f32_f32w_matmul(data, f32, rows.data(), rows.size(), target, weight_rows);
    }
  }
  return out;
}

Array<float> swiglu(const std::string& isa, In1<float> gate, In1<float> up, float limit) {
  check_multiple("the width", gate.size(), kLanes);
  check(up.size() == gate.size(), "up has ", up.size(), " values; expected ", gate.size());
  auto out = new_array<float>({gate.size()});
  select_kernels(isa).f32_swiglu(gate.data(), up.data(), limit, gate.size(), out.data());
  return out;
}

Array<float> axpy(const std::string& isa, float scale, In1<float> x, In1<float> y) {
  check_multiple("the width", x.size(), kLanes);
  check(y.size() == x.size(), "y has ", y.size(), " values; expected ", x.size());
  auto out = new_array<float>({y.size()});
  std::copy(y.data(), y.data() + y.size(), out.data());
  select_kernels(isa).f32_axpy(scale, x.data(), x.size(), out.data());
  return out;
}

Array<float> rope(const std::string& isa, In1<float> cos, In1<float> sin, float scale,
                  In1<float> x) {
  check_multiple("half the head", cos.size(), 8);
  check(sin.size() == cos.size() && x.size() == 2 * cos.size(), "sin has ", sin.size(), " and x ",
        x.size(), " values; expected ", cos.size(), " and ", 2 * cos.size());
  auto out = new_array<float>({x.size()});
  std::copy(x.data(), x.data() + x.size(), out.data());
  select_kernels(isa).f32_rope(cos.data(), sin.data(), scale, cos.size(), out.data());
  return out;
}

// One page folded into fresh states that start at `sinks`. keys: [head_dim, 32], values: [32,
// head_dim], as f16 bits or floats. Returns max, sum and unnormalised values.
template <typename Element>
nb::tuple attend(const std::string& isa, In2<float> queries, In1<float> sinks, In2<Element> keys,
                 In2<Element> values, size_t begin, size_t end) {
  const size_t count = queries.shape(0);
  const size_t head_dim = queries.shape(1);
  check_multiple("head_dim", head_dim, 16);
  check(sinks.size() == count, "sinks has ", sinks.size(), " values; expected ", count);
  check(keys.shape(0) == head_dim && keys.shape(1) == kPageTokens, "keys is [", keys.shape(0), ", ",
        keys.shape(1), "]; expected [", head_dim, ", ", kPageTokens, "]");
  check(values.shape(0) == kPageTokens && values.shape(1) == head_dim, "values is [",
        values.shape(0), ", ", values.shape(1), "]; expected [", kPageTokens, ", ", head_dim, "]");
  check(begin < end && end <= kPageTokens, "slots ", begin, "..", end, "; expected within 0..",
        kPageTokens);
  auto max = new_array<float>({count});
  auto sum = new_array<float>({count});
  auto out = new_array<float>({count, head_dim});
  std::copy(sinks.data(), sinks.data() + count, max.data());
  std::fill(sum.data(), sum.data() + count, 1.0f);
  std::fill(out.data(), out.data() + out.size(), 0.0f);
  const AttendQueries q = {queries.data(), count, head_dim, begin, end};
  const AttendState state = {max.data(), sum.data(), out.data()};
  if constexpr (std::is_same_v<Element, uint16_t>) {
    select_kernels(isa).f32_f16kv_attend(q, keys.data(), values.data(), state);
  } else {
    select_kernels(isa).f32_f32kv_attend(q, keys.data(), values.data(), state);
  }
  return nb::make_tuple(max, sum, out);
}

float exp_sum(const std::string& isa, In1<float> x, float max, float scale) {
  return select_kernels(isa).f32_exp_sum(x.data(), max, scale, x.size());
}

template <typename T>
void quantize_q8_0_rows(In2<T> values, Out1<uint8_t> blocks) {
  check_multiple("the width", values.shape(1), kBlock);
  check(blocks.size() == values.size() / kBlock * 34, "blocks has ", blocks.size(),
        " bytes; expected ", values.size() / kBlock * 34);
  nb::gil_scoped_release release;
  quantize_q8_0(values.data(), values.size(), blocks.data());
}

template <typename T>
std::tuple<double, double, double> encode_mxfp4_rows(AnyStride2<T> values, Out3<uint8_t> blocks,
                                                     Out2<uint8_t> scales) {
  const size_t rows = values.shape(0);
  const size_t k = values.shape(1);
  check_multiple("the width", k, kBlock);
  check(scales.shape(0) == rows && scales.shape(1) == k / kBlock, "scales is [", scales.shape(0),
        ", ", scales.shape(1), "]; expected [", rows, ", ", k / kBlock, "]");
  check(blocks.shape(0) == rows && blocks.shape(1) == k / kBlock && blocks.shape(2) == 16,
        "blocks is [", blocks.shape(0), ", ", blocks.shape(1), ", ", blocks.shape(2),
        "]; expected [", rows, ", ", k / kBlock, ", 16]");
  nb::gil_scoped_release release;
  const Mxfp4Error error =
      encode_mxfp4(StridedMatrix<T>{values.data(), rows, k, values.stride(0), values.stride(1)},
                   blocks.data(), scales.data());
  return {error.noise, error.power, error.max_abs};
}

// decode(blocks, scales, number of blocks, values).
template <typename T, typename Decode>
void decode_mxfp4_rows(In3<uint8_t> blocks, In2<uint8_t> scales, Out2<T> values, Decode decode) {
  const size_t rows = blocks.shape(0);
  const size_t count = blocks.shape(1);
  check(blocks.shape(2) == 16, "blocks have ", blocks.shape(2), " bytes; expected 16");
  check(scales.shape(0) == rows && scales.shape(1) == count, "scales is [", scales.shape(0), ", ",
        scales.shape(1), "]; expected [", rows, ", ", count, "]");
  check(values.shape(0) == rows && values.shape(1) == count * kBlock, "values is [",
        values.shape(0), ", ", values.shape(1), "]; expected [", rows, ", ", count * kBlock, "]");
  nb::gil_scoped_release release;
  decode(blocks.data(), scales.data(), rows * count, values.data());
}

void decode_mxfp4_f32(In3<uint8_t> blocks, In2<uint8_t> scales, Out2<float> values) {
  decode_mxfp4_rows(blocks, scales, values, [](auto... arguments) { decode_mxfp4(arguments...); });
}

void decode_mxfp4_bf16(const std::string& isa, In3<uint8_t> blocks, In2<uint8_t> scales,
                       Out2<uint16_t> values) {
  const Kernels& kernels = select_kernels(isa);
  decode_mxfp4_rows(blocks, scales, values,
                    [&](auto... arguments) { decode_mxfp4(kernels, arguments...); });
}

void check_tiles(const Out1<uint8_t>& tiles, WeightKind kind, size_t rows, size_t k) {
  check_multiple("the width", k, kBlock);
  check(tiles.size() == tiles_bytes(kind, rows, k), "tiles has ", tiles.size(), " bytes; expected ",
        tiles_bytes(kind, rows, k));
}

void pack_q8(In3<uint8_t> blocks, Out1<uint8_t> tiles) {
  check(blocks.shape(2) == 34, "Q8_0 blocks have ", blocks.shape(2), " bytes; expected 34");
  const size_t k = blocks.shape(1) * kBlock;
  check_tiles(tiles, WeightKind::kQ8Tiles, blocks.shape(0), k);
  nb::gil_scoped_release release;
  pack_q8_tiles(blocks.data(), blocks.shape(0), k, tiles.data());
}

void pack_bf16(In2<uint16_t> values, Out1<uint8_t> tiles) {
  check_tiles(tiles, WeightKind::kBf16Tiles, values.shape(0), values.shape(1));
  nb::gil_scoped_release release;
  pack_bf16_tiles(values.data(), values.shape(0), values.shape(1), tiles.data());
}

void pack_f32(In2<float> values, Out1<uint8_t> tiles) {
  check_tiles(tiles, WeightKind::kF32Tiles, values.shape(0), values.shape(1));
  nb::gil_scoped_release release;
  pack_f32_tiles(values.data(), values.shape(0), values.shape(1), tiles.data());
}

void pack_mxfp4(In3<uint8_t> blocks, In2<uint8_t> scales, bool interleaved, Out1<uint8_t> tiles) {
  const size_t rows = blocks.shape(0);
  const size_t k = blocks.shape(1) * kBlock;
  check(blocks.shape(2) == 16, "MXFP4 blocks have ", blocks.shape(2), " bytes; expected 16");
  check(scales.shape(0) == rows && scales.shape(1) == blocks.shape(1), "scales is [",
        scales.shape(0), ", ", scales.shape(1), "]; expected [", rows, ", ", blocks.shape(1), "]");
  check_multiple("the number of rows", rows, interleaved ? 2 * kTileRows : kTileRows);
  check_tiles(tiles, WeightKind::kMxfp4Tiles, rows, k);
  nb::gil_scoped_release release;
  pack_mxfp4_tiles(blocks.data(), scales.data(), rows, k, interleaved, tiles.data());
}

}  // namespace

void bind_kernels(nb::module_& m) {
  m.attr("PAGE_TOKENS") = kPageTokens;
  m.attr("TILE_ROWS") = kTileRows;
  m.def("isa_names", &isa_names, "Instruction sets this CPU can run, best first.");
  m.def(
      "tiles_bytes",
      [](const std::string& kind, size_t rows, size_t k) {
        check_multiple("the width", k, kBlock);
        return tiles_bytes(parse_weight_kind(kind), rows, k);
      },
      "kind"_a, "rows"_a, "k"_a, "Bytes of a packed matrix [rows, k].");
  m.def("quantize_q8_0", &quantize_q8_0_rows<float>, "values"_a, "blocks"_a,
        "Quantise [rows, k] floats to GGUF's Q8_0 blocks.");
  m.def("quantize_q8_0_bf16", &quantize_q8_0_rows<uint16_t>, "values"_a, "blocks"_a,
        "Quantise [rows, k] bfloat16 bits to GGUF's Q8_0 blocks.");
  m.def("encode_mxfp4", &encode_mxfp4_rows<float>, nb::arg("values").noconvert(),
        nb::arg("blocks").noconvert(), nb::arg("scales").noconvert(),
        "Quantise [rows, k] floats to MXFP4 blocks [rows, k/32, 16] and scales [rows, k/32]. "
        "Returns the sum of squared differences, that of squares, and the largest difference.");
  m.def("encode_mxfp4_bf16", &encode_mxfp4_rows<uint16_t>, nb::arg("values").noconvert(),
        nb::arg("blocks").noconvert(), nb::arg("scales").noconvert(),
        "As encode_mxfp4, from [rows, k] bfloat16 bits.");
  m.def("decode_mxfp4", &decode_mxfp4_f32, "blocks"_a, "scales"_a, nb::arg("values").noconvert(),
        "Decode MXFP4 blocks [rows, k/32, 16] and scales [rows, k/32] into floats [rows, k].");
  m.def(
      "decode_mxfp4_bf16",
      [](In3<uint8_t> blocks, In2<uint8_t> scales, Out2<uint16_t> values) {
        decode_mxfp4_bf16("", blocks, scales, values);
      },
      "blocks"_a, "scales"_a, nb::arg("values").noconvert(),
      "As decode_mxfp4, into bfloat16 bits; exact too.");
  m.def("pack_q8", &pack_q8, "blocks"_a, "tiles"_a, "Q8_0 blocks [rows, k/32, 34] into tiles.");
  m.def("pack_bf16", &pack_bf16, "values"_a, "tiles"_a, "bfloat16 bits [rows, k] into tiles.");
  m.def("pack_f32", &pack_f32, "values"_a, "tiles"_a, "Floats [rows, k] into tiles.");
  m.def("pack_mxfp4", &pack_mxfp4, "blocks"_a, "scales"_a, "interleaved"_a, "tiles"_a,
        "MXFP4 [rows, k/32, 16] and scales [rows, k/32] into tiles.");

  nb::module_ kernels = m.def_submodule("kernels", "Single kernels by instruction set, for tests.");
  kernels.def("rmsnorm", &rmsnorm, "isa"_a, "x"_a, "weight"_a, "eps"_a);
  kernels.def("quantize_q8", &quantize_q8, "isa"_a, "x"_a, "offset"_a);
  kernels.def("matmul", &matmul, "isa"_a, "kind"_a, "tiles"_a, "weight_rows"_a, "a"_a, "rows"_a,
              "quantized"_a);
  kernels.def("swiglu", &swiglu, "isa"_a, "gate"_a, "up"_a, "limit"_a);
  kernels.def("axpy", &axpy, "isa"_a, "scale"_a, "x"_a, "y"_a);
  kernels.def("rope", &rope, "isa"_a, "cos"_a, "sin"_a, "scale"_a, "x"_a);
  kernels.def("attend_f16", &attend<uint16_t>, "isa"_a, "queries"_a, "sinks"_a, "keys"_a,
              "values"_a, "begin"_a, "end"_a);
  kernels.def("attend_f32", &attend<float>, "isa"_a, "queries"_a, "sinks"_a, "keys"_a, "values"_a,
              "begin"_a, "end"_a);
  kernels.def("exp_sum", &exp_sum, "isa"_a, "x"_a, "max"_a, "scale"_a);
  kernels.def("decode_mxfp4_bf16", &decode_mxfp4_bf16, "isa"_a, "blocks"_a, "scales"_a,
              nb::arg("values").noconvert());
}

}  // namespace aperto
