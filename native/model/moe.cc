#include "model/moe.h"

#include <algorithm>

#include "kernels/scalar_math.h"

namespace aperto {
namespace {

// Tiles that are one work item: 10 pairs of 20b's gate_up take about 30 microseconds in decode.
constexpr size_t kPairsPerItem = 10;
constexpr size_t kTilesPerItem = 20;

// The rows of the grouped batch that belong to one expert.
struct ExpertRows {
  size_t expert;
  size_t first;
  size_t count;
};

// Picks the k largest logits, ties to the lower expert, and softmaxes over them.
void choose_experts(const float* logits, size_t num_experts, size_t k, int32_t* chosen,
                    float* weight) {
  for (size_t slot = 0; slot < k; ++slot) {
    int32_t best = -1;
    for (size_t e = 0; e < num_experts; ++e) {
      const bool taken = std::find(chosen, chosen + slot, static_cast<int32_t>(e)) != chosen + slot;
      if (!taken && (best < 0 || logits[e] > logits[best])) best = static_cast<int32_t>(e);
    }
    chosen[slot] = best;
  }
  float sum = 0.0f;
  for (size_t slot = 0; slot < k; ++slot) {
    weight[slot] = scalar_exp(logits[chosen[slot]] - logits[chosen[0]]);
    sum += weight[slot];
  }
  for (size_t slot = 0; slot < k; ++slot) weight[slot] /= sum;
}

// Norm, router and chosen experts of one token.
void route_token(ForwardContext& context, size_t layer, size_t token, size_t num_slots) {
  const ModelShape& shape = context.shape;
  const LayerShape& layer_shape = shape.layers[layer];
  const LayerWeights& w = context.weights.layers[layer];
  Activations& act = context.act;
  const size_t hidden = shape.hidden_size;
  float* normed = act.normed.data() + token * hidden;
  const VariantLayer* changes = context.changes(layer, token);
  const float* norm = vector_or(changes ? &changes->moe_norm : nullptr, w.moe_norm);
  context.kernels.f32_rmsnorm(act.x.data() + token * hidden, norm, shape.rms_norm_eps, hidden,
                              normed);
  float* logits = act.router.data() + token * round_up(layer_shape.num_experts, kTileRows);
  const auto matmul = w.router.kind == WeightKind::kBf16Tiles ? context.kernels.f32_bf16w_matmul
                                                              : context.kernels.f32_f32w_matmul;
  for (size_t tile = 0; tile < w.router.num_tiles(); ++tile) {
    matmul(w.router.tile(tile), {normed, hidden}, nullptr, 1, logits + tile * kTileRows, 0);
  }
  for (size_t e = 0; e < layer_shape.num_experts; ++e) logits[e] += w.router_bias[e];
  size_t k = layer_shape.experts_per_token;
  if (changes != nullptr) {
    if (!changes->router.empty()) {
      float* low = act.low.data() + token * act.max_low;
      changes->router.project(context.kernels, normed, low);
      changes->router.add(context.kernels, low, 0, round_up(layer_shape.num_experts, kTileRows),
                          logits);
    }
    if (changes->experts_per_token != 0) k = changes->experts_per_token;
  }
  int32_t* chosen = act.chosen.data() + token * num_slots;
  float* weight = act.weight.data() + token * num_slots;
  choose_experts(logits, layer_shape.num_experts, k, chosen, weight);
  std::fill(chosen + k, chosen + num_slots, -1);
  std::fill(weight + k, weight + num_slots, 0.0f);
}

// Slots a token has in this batch: the most experts that any of its rows chooses.
size_t slots_of(const ForwardContext& context, size_t layer) {
  const size_t own = context.shape.layers[layer].experts_per_token;
  size_t most = own;
  for (const Variant* variant : context.batch.variants) {
    if (variant != nullptr) most = std::max(most, variant->layer(layer).experts_per_token);
  }
  return most;
}

// Sorts slots by expert: fills row_of and token_of, returns the experts that have rows.
std::vector<ExpertRows> group_by_expert(ForwardContext& context, size_t layer, size_t num_slots) {
  const LayerShape& shape = context.shape.layers[layer];
  Activations& act = context.act;
  const size_t slots = context.batch.num_tokens * num_slots;
  std::vector<size_t> next(shape.num_experts + 1);
  for (size_t slot = 0; slot < slots; ++slot) {
    if (act.chosen[slot] >= 0) ++next[act.chosen[slot] + 1];
  }
  std::vector<ExpertRows> groups;
  for (size_t e = 0; e < shape.num_experts; ++e) {
    if (next[e + 1] > 0) groups.push_back({e, next[e], next[e + 1]});
    next[e + 1] += next[e];
  }
  for (size_t slot = 0; slot < slots; ++slot) {
    if (act.chosen[slot] < 0) continue;
    const size_t row = next[act.chosen[slot]]++;
    act.row_of[slot] = static_cast<int32_t>(row);
    act.token_of[row] = static_cast<int32_t>(slot / num_slots);
  }
  return groups;
}

// Calls body(group, begin, end, thread) for ranges of `total` units of every group.
template <typename Body>
void for_each_range(ThreadPool& pool, const std::vector<ExpertRows>& groups, size_t total,
                    size_t per_item, Body body) {
  const size_t items = (total + per_item - 1) / per_item;
  pool.parallel_for(groups.size() * items, [&](size_t item, int thread) {
    const size_t begin = item % items * per_item;
    body(groups[item / items], begin, std::min(begin + per_item, total), thread);
  });
}

// Adds 16 biases to each of `count` rows of 16.
void add_bias(const float* bias, size_t count, float* rows) {
  for (size_t i = 0; i < count; ++i) {
    for (size_t r = 0; r < kTileRows; ++r) rows[i * kTileRows + r] += bias[r];
  }
}

// What a grouped row's variant does to its expert, nullptr where nothing.
const LinearChange* expert_change(const ForwardContext& context, size_t layer, size_t expert,
                                  size_t row, std::vector<LinearChange> VariantLayer::* part) {
  const VariantLayer* changes = context.changes(layer, context.act.token_of[row]);
  if (changes == nullptr || (changes->*part).empty()) return nullptr;
  const LinearChange& change = (changes->*part)[expert];
  return change.empty() ? nullptr : &change;
}

// Projects the grouped rows whose experts are changed; row_at(row) is where a row's floats are.
template <typename RowAt>
void project_groups(ForwardContext& context, size_t layer, const std::vector<ExpertRows>& groups,
                    std::vector<LinearChange> VariantLayer::* part, RowAt row_at) {
  if (context.batch.variants.empty()) return;
  context.pool.parallel_for(groups.size(), [&](size_t item, int) {
    const ExpertRows& group = groups[item];
    for (size_t row = group.first; row < group.first + group.count; ++row) {
      const LinearChange* change = expert_change(context, layer, group.expert, row, part);
      if (change == nullptr) continue;
      change->project(context.kernels, row_at(row),
                      context.act.low.data() + row * context.act.max_low);
    }
  });
}

// Adds the changes of one tile of outputs to the rows of a group, `stride` floats apart.
void change_tile(ForwardContext& context, size_t layer, const ExpertRows& group, size_t tile,
                 std::vector<LinearChange> VariantLayer::* part, float* out, size_t stride) {
  if (context.batch.variants.empty()) return;
  for (size_t i = 0; i < group.count; ++i) {
    const size_t row = group.first + i;
    const LinearChange* change = expert_change(context, layer, group.expert, row, part);
    if (change == nullptr) continue;
    change->add(context.kernels, context.act.low.data() + row * context.act.max_low,
                tile * kTileRows, kTileRows, out + i * stride);
  }
}

// Gate and up products and the activation of tile pairs [begin, end) of one expert.
void gate_up_pairs(ForwardContext& context, size_t layer, const ExpertRows& group, size_t begin,
                   size_t end, int thread) {
  const ModelShape& shape = context.shape;
  const LayerWeights& w = context.weights.layers[layer];
  const TiledWeight& weight = w.gate_up[group.expert];
  Activations& act = context.act;
  const float* bias = w.gate_up_bias + group.expert * 2 * shape.intermediate_size;
  const int32_t* tokens = act.token_of.data() + group.first;
  float* halves[2] = {act.gate[thread].data(), act.up[thread].data()};
  for (size_t pair = begin; pair < end; ++pair) {
    for (size_t i = 0; i < 2; ++i) {
      const size_t tile = 2 * pair + i;
      if (context.weights.quantized) {
        context.kernels.q8_mxfp4w_matmul(
            weight.tile(tile), act.q8_experts.panels(shape.hidden_size, group.count, group.first),
            act.unpacked[thread].data(), halves[i], kTileRows);
      } else {
        context.kernels.f32_mxfp4w_matmul(weight.tile(tile), {act.normed.data(), shape.hidden_size},
                                          tokens, group.count, halves[i], kTileRows);
      }
      add_bias(bias + tile * kTileRows, group.count, halves[i]);
      change_tile(context, layer, group, tile, &VariantLayer::gate_up, halves[i], kTileRows);
    }
    context.kernels.f32_swiglu(halves[0], halves[1], shape.swiglu_limit, group.count * kTileRows,
                               halves[0]);
    for (size_t i = 0; i < group.count; ++i) {
      std::copy(halves[0] + i * kTileRows, halves[0] + (i + 1) * kTileRows,
                act.act.data() + (group.first + i) * shape.intermediate_size + pair * kTileRows);
    }
  }
}

// Output tiles [begin, end) of one expert.
void down_tiles(ForwardContext& context, size_t layer, const ExpertRows& group, size_t begin,
                size_t end, int thread) {
  const ModelShape& shape = context.shape;
  const LayerWeights& w = context.weights.layers[layer];
  const TiledWeight& weight = w.down[group.expert];
  Activations& act = context.act;
  const size_t hidden = shape.hidden_size;
  const size_t inter = shape.intermediate_size;
  const float* bias = w.down_bias + group.expert * hidden;
  for (size_t tile = begin; tile < end; ++tile) {
    float* out = act.expert_out.data() + group.first * hidden + tile * kTileRows;
    if (context.weights.quantized) {
      context.kernels.q8_mxfp4w_matmul(weight.tile(tile),
                                       act.q8.panels(inter, group.count, group.first),
                                       act.unpacked[thread].data(), out, hidden);
    } else {
      context.kernels.f32_mxfp4w_matmul(weight.tile(tile),
                                        {act.act.data() + group.first * inter, inter}, nullptr,
                                        group.count, out, hidden);
    }
    for (size_t i = 0; i < group.count; ++i) {
      for (size_t r = 0; r < kTileRows; ++r) out[i * hidden + r] += bias[tile * kTileRows + r];
    }
    change_tile(context, layer, group, tile, &VariantLayer::down, out, hidden);
  }
}

// Quantises each grouped row of width `width`; row_at(row) is where its floats are.
template <typename RowAt>
void quantize_groups(ForwardContext& context, const std::vector<ExpertRows>& groups, size_t width,
                     Q8Buffer& out, RowAt row_at) {
  context.pool.parallel_for(groups.size(), [&](size_t item, int) {
    const ExpertRows& group = groups[item];
    const Q8Panels panels = out.panels(width, group.count, group.first);
    for (size_t i = 0; i < group.count; ++i) {
      quantize_row(context.kernels, row_at(group.first + i), i, kMxfp4Offset, panels);
    }
  });
}

void tap_routing(ForwardContext& context, size_t layer, size_t num_slots) {
  const Activations& act = context.act;
  const size_t experts = context.shape.layers[layer].num_experts;
  tap_rows(context, layer, "moe.router_logits", act.router.data(), experts,
           round_up(experts, kTileRows));
  std::vector<float> chosen(act.chosen.data(),
                            act.chosen.data() + context.batch.num_tokens * num_slots);
  tap_rows(context, layer, "moe.topk", chosen.data(), num_slots, num_slots);
  tap_rows(context, layer, "moe.weights", act.weight.data(), num_slots, num_slots);
}

// moe.expert_out: [tokens, slots, hidden]; slots that a token does not use are zero.
void tap_expert_out(ForwardContext& context, size_t layer, size_t num_slots) {
  Taps* taps = context.batch.taps;
  const std::string name = Taps::name(layer, "moe.expert_out");
  if (!taps->wants(name)) return;
  const Activations& act = context.act;
  const size_t hidden = context.shape.hidden_size;
  const size_t tokens = context.batch.num_tokens;
  Tap& tap = taps->taken[name];
  tap.shape = {tokens, num_slots, hidden};
  tap.values.assign(tokens * num_slots * hidden, 0.0f);
  for (size_t slot = 0; slot < tokens * num_slots; ++slot) {
    if (act.chosen[slot] < 0) continue;
    const float* row = act.expert_out.data() + act.row_of[slot] * hidden;
    std::copy(row, row + hidden, tap.values.data() + slot * hidden);
  }
}

}  // namespace

void moe_layer(ForwardContext& context, size_t layer) {
  const ModelShape& shape = context.shape;
  Activations& act = context.act;
  const size_t tokens = context.batch.num_tokens;
  const size_t k = slots_of(context, layer);
  const size_t hidden = shape.hidden_size;
  const size_t inter = shape.intermediate_size;
  const bool quantized = context.weights.quantized;
  context.pool.parallel_for(tokens,
                            [&](size_t token, int) { route_token(context, layer, token, k); });
  const std::vector<ExpertRows> groups = group_by_expert(context, layer, k);
  if (context.batch.taps != nullptr) tap_routing(context, layer, k);
  if (quantized) {
    quantize_groups(context, groups, hidden, act.q8_experts,
                    [&](size_t row) { return act.normed.data() + act.token_of[row] * hidden; });
  }
  project_groups(context, layer, groups, &VariantLayer::gate_up,
                 [&](size_t row) { return act.normed.data() + act.token_of[row] * hidden; });
  for_each_range(context.pool, groups, inter / kTileRows, kPairsPerItem,
                 [&](const ExpertRows& group, size_t begin, size_t end, int thread) {
                   gate_up_pairs(context, layer, group, begin, end, thread);
                 });
  if (quantized) {
    quantize_groups(context, groups, inter, act.q8,
                    [&](size_t row) { return act.act.data() + row * inter; });
  }
  project_groups(context, layer, groups, &VariantLayer::down,
                 [&](size_t row) { return act.act.data() + row * inter; });
  for_each_range(context.pool, groups, hidden / kTileRows, kTilesPerItem,
                 [&](const ExpertRows& group, size_t begin, size_t end, int thread) {
                   down_tiles(context, layer, group, begin, end, thread);
                 });
  if (context.batch.taps != nullptr) tap_expert_out(context, layer, k);
  context.pool.parallel_for(tokens, [&](size_t token, int) {
    for (size_t slot = token * k; slot < (token + 1) * k; ++slot) {
      if (act.chosen[slot] < 0) continue;
      context.kernels.f32_axpy(act.weight[slot], act.expert_out.data() + act.row_of[slot] * hidden,
                               hidden, act.x.data() + token * hidden);
    }
  });
}

}  // namespace aperto
