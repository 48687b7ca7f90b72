#include "model/variant.h"

#include <algorithm>

#include "base/check.h"

namespace aperto {
namespace {

// Where output row `row` of a product lies in the order of its packed rows.
size_t packed_row(size_t row, bool interleaved) {
  if (!interleaved) return row;
  return row / 2 / kTileRows * 2 * kTileRows + row % 2 * kTileRows + row / 2 % kTileRows;
}

}  // namespace

void LinearChange::project(const Kernels& kernels, const float* x, float* low) const {
  for (size_t tile = 0; tile * kTileRows < rank; ++tile) {
    const float* data = a.data() + tile * (f32_tile_bytes(in) / sizeof(float));
    kernels.f32_f32w_matmul(reinterpret_cast<const uint8_t*>(data), {x, in}, nullptr, 1,
                            low + tile * kTileRows, 0);
  }
}

void LinearChange::add(const Kernels& kernels, const float* low, size_t begin, size_t count,
                       float* y) const {
  if (!addend.empty()) kernels.f32_axpy(1.0f, addend.data() + begin, count, y);
  for (size_t j = 0; j < rank; ++j) {
    kernels.f32_axpy(low[j], b.data() + j * stride + begin, count, y);
  }
}

void ResidualChange::apply(const Kernels& kernels, size_t hidden, float* x) const {
  if (scale != 1.0f) {
    for (size_t i = 0; i < hidden; ++i) x[i] *= scale;
  }
  if (!addend.empty()) kernels.f32_axpy(1.0f, addend.data(), hidden, x);
}

Variant::Variant(const ModelShape& shape, const Weights& weights)
    : shape_(shape), weights_(weights), layers_(shape.layers.size()) {}

VariantLayer& Variant::at(size_t layer) {
  check(layer < layers_.size(), "layer ", layer, " does not exist; the model has ", layers_.size());
  return layers_[layer];
}

Variant::Target Variant::target(size_t layer, const std::string& part, size_t expert) {
  VariantLayer& changes = at(layer);
  const LayerWeights& w = weights_.layers[layer];
  const size_t hidden = shape_.hidden_size;
  const size_t q = shape_.q_size();
  const size_t kv = shape_.kv_size();
  const size_t experts = shape_.layers[layer].num_experts;
  if (part == "attn.q") return {&changes.q, w.qkv_bias, hidden, q, false};
  if (part == "attn.k") return {&changes.k, w.qkv_bias + q, hidden, kv, false};
  if (part == "attn.v") return {&changes.v, w.qkv_bias + q + kv, hidden, kv, false};
  if (part == "attn.out") return {&changes.out, w.out_bias, q, hidden, false};
  if (part == "moe.router") return {&changes.router, w.router_bias, hidden, experts, false};
  const bool is_gate_up = part == "moe.gate_up";
  check(is_gate_up || part == "moe.down", "unknown part '", part, "'");
  check(expert < experts, "expert ", expert, " of layer ", layer, " does not exist; it has ",
        experts);
  std::vector<LinearChange>& list = is_gate_up ? changes.gate_up : changes.down;
  list.resize(experts);
  const size_t inter = shape_.intermediate_size;
  if (is_gate_up) {
    return {&list[expert], w.gate_up_bias + expert * 2 * inter, hidden, 2 * inter, true};
  }
  return {&list[expert], w.down_bias + expert * hidden, inter, hidden, false};
}

void Variant::set_low_rank(size_t layer, const std::string& part, size_t expert, size_t rank,
                           const float* a, size_t a_width, const float* b, size_t b_rows) {
  const Target to = target(layer, part, expert);
  check(rank > 0 && a_width == to.in && b_rows == to.out, "layer ", layer, ", ", part, ": A is [",
        rank, ", ", a_width, "] and B is [", b_rows, ", ", rank, "]; expected [r, ", to.in,
        "] and [", to.out, ", r], r > 0");
  LinearChange& change = *to.change;
  change.rank = rank;
  change.in = to.in;
  change.stride = round_up(to.out, kTileRows);
  change.a.assign(tiles_bytes(WeightKind::kF32Tiles, rank, to.in) / sizeof(float), 0.0f);
  pack_f32_tiles(a, rank, to.in, reinterpret_cast<uint8_t*>(change.a.data()));
  change.b.assign(rank * change.stride, 0.0f);
  for (size_t row = 0; row < to.out; ++row) {
    for (size_t j = 0; j < rank; ++j) {
      change.b[j * change.stride + packed_row(row, to.interleaved)] = b[row * rank + j];
    }
  }
  max_low_ = std::max(max_low_, round_up(rank, kTileRows));
}

void Variant::set_bias(size_t layer, const std::string& part, size_t expert, const float* values,
                       size_t count, bool replace) {
  const Target to = target(layer, part, expert);
  check(count == to.out, "layer ", layer, ", ", part, ": the bias has ", count,
        " values; expected ", to.out);
  std::vector<float>& addend = to.change->addend;
  addend.assign(round_up(to.out, kTileRows), 0.0f);
  for (size_t row = 0; row < to.out; ++row) {
    const size_t packed = packed_row(row, to.interleaved);
    addend[packed] = replace ? values[row] - to.bias[packed] : values[row];
  }
}

void Variant::replace_vector(size_t layer, const std::string& name, const float* values,
                             size_t count) {
  std::vector<float>* vector = nullptr;
  size_t expected = shape_.hidden_size;
  if (name == "norm") vector = &norm_;
  if (name == "attn.norm") vector = &at(layer).attn_norm;
  if (name == "moe.norm") vector = &at(layer).moe_norm;
  if (name == "attn.sinks") {
    vector = &at(layer).sinks;
    expected = shape_.num_heads;
  }
  check(vector != nullptr, "unknown vector '", name, "'");
  check(count == expected, "layer ", layer, ", ", name, " has ", count, " values; expected ",
        expected);
  vector->assign(values, values + count);
}

void Variant::set_residual(size_t layer, const std::string& point, float scale, const float* values,
                           size_t count) {
  VariantLayer& changes = at(layer);
  ResidualChange* change = nullptr;
  if (point == "resid_pre") change = &changes.resid_pre;
  if (point == "resid_mid") change = &changes.resid_mid;
  if (point == "resid_post") change = &changes.resid_post;
  check(change != nullptr, "unknown point '", point, "'");
  check(count == 0 || count == shape_.hidden_size, "layer ", layer, ", ", point,
        ": the vector has ", count, " values; expected ", shape_.hidden_size);
  change->scale = scale;
  change->addend.assign(values, values + count);
}

void Variant::set_experts_per_token(size_t layer, size_t count) {
  VariantLayer& changes = at(layer);
  const size_t experts = shape_.layers[layer].num_experts;
  check(count >= 1 && count <= experts, "layer ", layer, ": ", count,
        " experts a token; expected 1..", experts);
  changes.experts_per_token = count;
  max_experts_per_token_ = std::max(max_experts_per_token_, count);
}

}  // namespace aperto
