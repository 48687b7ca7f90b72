#include "model/attention.h"

#include <cmath>

#include "kernels/scalar_math.h"

namespace aperto {
namespace {

// Tokens whose attention is one work item in prefill: enough to reuse a page while it is in cache.
constexpr size_t kTokensPerItem = 16;

// sin and cos of an angle >= 0 in double, by our own series: libm's last bit differs between
// machines. The reduction is exact to 2^-60 for angles up to 2^20 quarter turns.
void sin_cos(double angle, double* sin, double* cos) {
  constexpr double kTwoOverPi = 0.63661977236758134308;
  constexpr double kHalfPiHigh = 1.57079632673412561417;        // 33 bits
  constexpr double kHalfPiMiddle = 6.07710050630396597660e-11;  // the next 33
  constexpr double kHalfPiLow = 2.02226624879595063154e-21;
  const double turns = std::nearbyint(angle * kTwoOverPi);
  const double r = ((angle - turns * kHalfPiHigh) - turns * kHalfPiMiddle) - turns * kHalfPiLow;
  const double r2 = r * r;
  // Taylor series on [-pi/4, pi/4]: the first term left out is under 1e-17.
  double s = 0.0;
  for (int n = 17; n >= 3; n -= 2) s = (1.0 + s) * (-r2 / (n * (n - 1)));
  s = r * (1.0 + s);
  double c = 0.0;
  for (int n = 18; n >= 2; n -= 2) c = (1.0 + c) * (-r2 / (n * (n - 1)));
  c = 1.0 + c;
  switch (static_cast<int64_t>(turns) & 3) {
    case 0:
      *sin = s, *cos = c;
      break;
    case 1:
      *sin = c, *cos = -s;
      break;
    case 2:
      *sin = -s, *cos = -c;
      break;
    default:
      *sin = -c, *cos = s;
  }
}

int32_t page_of(const ForwardContext& context, size_t group, size_t token, size_t position) {
  const Batch& batch = context.batch;
  return batch
      .page_tables[group][batch.sequences[token] * batch.max_pages[group] + position / kPageTokens];
}

template <typename Element>
Element to_element(float value);
template <>
uint16_t to_element<uint16_t>(float value) {
  return float_to_half(value);
}
template <>
float to_element<float>(float value) {
  return value;
}

// Rotates queries and keys of one token and stores its keys and values.
template <typename Element>
void rotate_and_store(ForwardContext& context, size_t layer, size_t token) {
  const ModelShape& shape = context.shape;
  const size_t head_dim = shape.head_dim;
  const size_t half = head_dim / 2;
  const float* cos = context.act.rope_cos.data() + token * half;
  const float* sin = context.act.rope_sin.data() + token * half;
  float* q = context.act.qkv.data() + token * shape.qkv_size();
  float* k = q + shape.q_size();
  const float* v = k + shape.kv_size();
  const float scale = 1.0f / std::sqrt(static_cast<float>(head_dim));
  for (size_t h = 0; h < shape.num_heads; ++h) {
    context.kernels.f32_rope(cos, sin, scale, half, q + h * head_dim);
  }
  const size_t position = context.batch.positions[token];
  const size_t slot = position % kPageTokens;
  const int32_t page = page_of(context, shape.layers[layer].group, token, position);
  for (size_t h = 0; h < shape.num_kv_heads; ++h) {
    context.kernels.f32_rope(cos, sin, 1.0f, half, k + h * head_dim);
    Element* keys = reinterpret_cast<Element*>(context.pages.head(layer, page, h));
    Element* values = keys + head_dim * kPageTokens + slot * head_dim;
    for (size_t d = 0; d < head_dim; ++d) {
      keys[d * kPageTokens + slot] = to_element<Element>(k[h * head_dim + d]);
      values[d] = to_element<Element>(v[h * head_dim + d]);
    }
  }
}

// Attention of tokens [begin, end), all of one sequence, for one key/value head.
void attend_tokens(ForwardContext& context, size_t layer, size_t begin, size_t end,
                   size_t kv_head) {
  const ModelShape& shape = context.shape;
  const LayerShape& layer_shape = shape.layers[layer];
  const size_t heads = shape.heads_per_kv_head();
  const size_t head_dim = shape.head_dim;
  const size_t first_head = kv_head * heads;
  const VariantLayer* changes = context.changes(layer, begin);
  const float* sinks =
      vector_or(changes ? &changes->sinks : nullptr, context.weights.layers[layer].sinks) +
      first_head;
  const auto first_visible = [&](size_t position) -> size_t {
    const size_t window = layer_shape.window;
    return window == 0 || position + 1 <= window ? 0 : position + 1 - window;
  };
  // The sink is where each head's softmax starts: a key with a score and no value.
  std::vector<float> max(heads * (end - begin));
  std::vector<float> sum(heads * (end - begin), 1.0f);
  for (size_t token = begin; token < end; ++token) {
    std::copy(sinks, sinks + heads, max.data() + (token - begin) * heads);
    float* output = context.act.attended.data() + token * shape.q_size() + first_head * head_dim;
    std::fill(output, output + heads * head_dim, 0.0f);
  }
  const size_t first_page = first_visible(context.batch.positions[begin]) / kPageTokens;
  const size_t last_page = context.batch.positions[end - 1] / kPageTokens;
  for (size_t page = first_page; page <= last_page; ++page) {
    const size_t page_start = page * kPageTokens;
    uint8_t* keys = nullptr;  // looked up once a token needs it: pages behind a window are gone
    for (size_t token = begin; token < end; ++token) {
      const size_t position = context.batch.positions[token];
      const size_t visible = first_visible(position);
      if (page_start > position || page_start + kPageTokens <= visible) continue;
      if (keys == nullptr) {
        keys = context.pages.head(layer, page_of(context, layer_shape.group, token, page_start),
                                  kv_head);
      }
      const AttendQueries queries = {
          context.act.qkv.data() + token * shape.qkv_size() + first_head * head_dim, heads,
          head_dim, std::max(visible, page_start) - page_start,
          std::min(position + 1 - page_start, kPageTokens)};
      const AttendState state = {
          max.data() + (token - begin) * heads, sum.data() + (token - begin) * heads,
          context.act.attended.data() + token * shape.q_size() + first_head * head_dim};
      if (context.pages.kind() == KvKind::kF16) {
        const uint16_t* k = reinterpret_cast<const uint16_t*>(keys);
        context.kernels.f32_f16kv_attend(queries, k, k + head_dim * kPageTokens, state);
      } else {
        const float* k = reinterpret_cast<const float*>(keys);
        context.kernels.f32_f32kv_attend(queries, k, k + head_dim * kPageTokens, state);
      }
    }
  }
  for (size_t token = begin; token < end; ++token) {
    float* output = context.act.attended.data() + token * shape.q_size() + first_head * head_dim;
    for (size_t i = 0; i < heads * head_dim; ++i) {
      output[i] /= sum[(token - begin) * heads + i / head_dim];
    }
  }
}

// Runs of at most kTokensPerItem tokens of one sequence: the starts, and the end of the last.
std::vector<size_t> split_tokens(const Batch& batch) {
  std::vector<size_t> starts;
  size_t length = 0;
  for (size_t token = 0; token < batch.num_tokens; ++token, ++length) {
    const bool same = token > 0 && batch.sequences[token] == batch.sequences[token - 1];
    if (!same || length == kTokensPerItem) {
      starts.push_back(token);
      length = 0;
    }
  }
  starts.push_back(batch.num_tokens);
  return starts;
}

void change_row(ForwardContext& context, const LinearChange& change, size_t token, const float* x,
                size_t width, float* y) {
  if (change.empty()) return;
  float* low = context.act.low.data() + token * context.act.max_low;
  change.project(context.kernels, x, low);
  change.add(context.kernels, low, 0, width, y);
}

// Adds a variant's changes to the queries, keys and values of a token.
void change_qkv(ForwardContext& context, size_t layer, size_t token) {
  const VariantLayer* changes = context.changes(layer, token);
  if (changes == nullptr) return;
  const ModelShape& shape = context.shape;
  const float* normed = context.act.normed.data() + token * shape.hidden_size;
  float* q = context.act.qkv.data() + token * shape.qkv_size();
  float* k = q + shape.q_size();
  change_row(context, changes->q, token, normed, shape.q_size(), q);
  change_row(context, changes->k, token, normed, shape.kv_size(), k);
  change_row(context, changes->v, token, normed, shape.kv_size(), k + shape.kv_size());
}

void tap_qkv(ForwardContext& context, size_t layer) {
  const ModelShape& shape = context.shape;
  const float* q = context.act.qkv.data();
  const float* k = q + shape.q_size();
  tap_rows(context, layer, "attn.q", q, shape.q_size(), shape.qkv_size());
  tap_rows(context, layer, "attn.k", k, shape.kv_size(), shape.qkv_size());
  tap_rows(context, layer, "attn.v", k + shape.kv_size(), shape.kv_size(), shape.qkv_size());
}

float key_at(const ForwardContext& context, size_t layer, size_t token, size_t position,
             size_t kv_head, size_t d) {
  const int32_t page = page_of(context, context.shape.layers[layer].group, token, position);
  const uint8_t* keys = context.pages.head(layer, page, kv_head);
  const size_t index = d * kPageTokens + position % kPageTokens;
  if (context.pages.kind() == KvKind::kF16) {
    return half_to_float(reinterpret_cast<const uint16_t*>(keys)[index]);
  }
  return reinterpret_cast<const float*>(keys)[index];
}

// What one head of a token attends to. out: [positions], then the sink.
void pattern_row(const ForwardContext& context, size_t layer, size_t token, size_t head, float* out,
                 size_t sink_at) {
  const ModelShape& shape = context.shape;
  const size_t head_dim = shape.head_dim;
  const size_t position = context.batch.positions[token];
  const size_t window = shape.layers[layer].window;
  const size_t first = window == 0 || position + 1 <= window ? 0 : position + 1 - window;
  const float* query = context.act.qkv.data() + token * shape.qkv_size() + head * head_dim;
  const VariantLayer* changes = context.changes(layer, token);
  const float* sinks =
      vector_or(changes ? &changes->sinks : nullptr, context.weights.layers[layer].sinks);
  float max = sinks[head];
  for (size_t p = first; p <= position; ++p) {
    float score = 0.0f;
    for (size_t d = 0; d < head_dim; ++d) {
      score += query[d] * key_at(context, layer, token, p, head / shape.heads_per_kv_head(), d);
    }
    out[p] = score;
    max = std::max(max, score);
  }
  out[sink_at] = scalar_exp(sinks[head] - max);
  float sum = out[sink_at];
  for (size_t p = first; p <= position; ++p) sum += out[p] = scalar_exp(out[p] - max);
  for (size_t p = first; p <= position; ++p) out[p] /= sum;
  out[sink_at] /= sum;
}

// attn.pattern: [tokens, heads, positions + 1], the sink last.
void tap_pattern(ForwardContext& context, size_t layer) {
  Taps* taps = context.batch.taps;
  if (taps == nullptr || !taps->wants(Taps::name(layer, "attn.pattern"))) return;
  const size_t tokens = context.batch.num_tokens;
  const size_t heads = context.shape.num_heads;
  size_t width = 0;
  for (size_t t = 0; t < tokens; ++t) {
    width = std::max<size_t>(width, context.batch.positions[t] + 2);
  }
  Tap& tap = taps->taken[Taps::name(layer, "attn.pattern")];
  tap.shape = {tokens, heads, width};
  tap.values.assign(tokens * heads * width, 0.0f);
  context.pool.parallel_for(tokens * heads, [&](size_t item, int) {
    pattern_row(context, layer, item / heads, item % heads, tap.values.data() + item * width,
                width - 1);
  });
}

}  // namespace

void fill_rope(ForwardContext& context) {
  const size_t half = context.shape.head_dim / 2;
  context.pool.parallel_for(context.batch.num_tokens, [&](size_t token, int) {
    const float position = static_cast<float>(context.batch.positions[token]);
    for (size_t d = 0; d < half; ++d) {
      // The angle is rounded to float, as in the model's own implementation.
      const float angle = position * context.shape.rope_frequency[d];
      double sin;
      double cos;
      sin_cos(angle, &sin, &cos);
      const float concentration = context.shape.rope_concentration;
      context.act.rope_cos[token * half + d] = static_cast<float>(cos) * concentration;
      context.act.rope_sin[token * half + d] = static_cast<float>(sin) * concentration;
    }
  });
}

void attention_layer(ForwardContext& context, size_t layer) {
  const ModelShape& shape = context.shape;
  const LayerWeights& w = context.weights.layers[layer];
  const size_t tokens = context.batch.num_tokens;
  const size_t hidden = shape.hidden_size;
  Activations& act = context.act;
  const bool quantized = context.weights.quantized;
  const Q8Panels q8_normed = act.q8.panels(hidden, tokens);
  context.pool.parallel_for(tokens, [&](size_t token, int) {
    float* normed = act.normed.data() + token * hidden;
    const VariantLayer* changes = context.changes(layer, token);
    const float* norm = vector_or(changes ? &changes->attn_norm : nullptr, w.attn_norm);
    context.kernels.f32_rmsnorm(act.x.data() + token * hidden, norm, shape.rms_norm_eps, hidden,
                                normed);
    if (quantized) quantize_row(context.kernels, normed, token, kQ8Offset, q8_normed);
  });
  dense_matmul(context, w.qkv, {act.normed.data(), hidden}, q8_normed, tokens, w.qkv_bias, false,
               act.qkv.data(), shape.qkv_size());
  if (!context.batch.variants.empty()) {
    context.pool.parallel_for(tokens,
                              [&](size_t token, int) { change_qkv(context, layer, token); });
  }
  tap_qkv(context, layer);
  context.pool.parallel_for(tokens, [&](size_t token, int) {
    if (context.pages.kind() == KvKind::kF16) {
      rotate_and_store<uint16_t>(context, layer, token);
    } else {
      rotate_and_store<float>(context, layer, token);
    }
  });
  const std::vector<size_t> starts = split_tokens(context.batch);
  const size_t kv_heads = shape.num_kv_heads;
  context.pool.parallel_for((starts.size() - 1) * kv_heads, [&](size_t item, int) {
    // Late tokens see more pages: handed out first, they do not end up as the tail.
    const size_t run = starts.size() - 2 - item / kv_heads;
    attend_tokens(context, layer, starts[run], starts[run + 1], item % kv_heads);
  });
  const size_t q_size = shape.q_size();
  tap_rows(context, layer, "attn.z", act.attended.data(), q_size, q_size);
  tap_pattern(context, layer);
  const Q8Panels q8_attended = act.q8.panels(q_size, tokens);
  if (quantized) {
    context.pool.parallel_for(tokens, [&](size_t token, int) {
      quantize_row(context.kernels, act.attended.data() + token * q_size, token, kQ8Offset,
                   q8_attended);
    });
  }
  dense_matmul(context, w.out, {act.attended.data(), q_size}, q8_attended, tokens, w.out_bias, true,
               act.x.data(), hidden);
  if (context.batch.variants.empty()) return;
  context.pool.parallel_for(tokens, [&](size_t token, int) {
    const VariantLayer* changes = context.changes(layer, token);
    if (changes == nullptr) return;
    change_row(context, changes->out, token, act.attended.data() + token * q_size, hidden,
               act.x.data() + token * hidden);
  });
}

}  // namespace aperto
