#include "model/forward.h"

#include "base/check.h"
#include "base/float_environment.h"
#include "model/attention.h"
#include "model/moe.h"

namespace aperto {
namespace {

// Work items a thread gets on average: enough to even out a busy core, few enough to stay cheap.
constexpr size_t kItemsPerThread = 8;

// Tiles that a Q8 head of 200,000 rows hands out at once, so that items stay under a millisecond.
constexpr size_t kMaxTilesPerItem = 64;

void tile_matmul(const Kernels& kernels, const TiledWeight& weight, size_t tile,
                 const F32Rows& rows, const Q8Panels& panels, size_t num_tokens, uint8_t* scratch,
                 float* out, size_t out_stride) {
  const uint8_t* data = weight.tile(tile);
  switch (weight.kind) {
    case WeightKind::kQ8Tiles:
      kernels.q8_q8w_matmul(data, panels, scratch, out, out_stride);
      break;
    case WeightKind::kBf16Tiles:
      kernels.f32_bf16w_matmul(data, rows, nullptr, num_tokens, out, out_stride);
      break;
    default:
      kernels.f32_f32w_matmul(data, rows, nullptr, num_tokens, out, out_stride);
  }
}

// A point of the residual stream: what variants do there, then what reads it.
void change_residual(ForwardContext& context, size_t layer, ResidualChange VariantLayer::* change,
                     const char* point) {
  const size_t hidden = context.shape.hidden_size;
  for (size_t token = 0; !context.batch.variants.empty() && token < context.batch.num_tokens;
       ++token) {
    const VariantLayer* changes = context.changes(layer, token);
    if (changes == nullptr) continue;
    (changes->*change).apply(context.kernels, hidden, context.act.x.data() + token * hidden);
  }
  tap_rows(context, layer, point, context.act.x.data(), hidden, hidden);
}

}  // namespace

void dense_matmul(ForwardContext& context, const TiledWeight& weight, const F32Rows& rows,
                  const Q8Panels& panels, size_t num_tokens, const float* bias, bool add,
                  float* out, size_t out_stride) {
  const size_t tiles = weight.num_tiles();
  const size_t wanted = context.pool.num_threads() * kItemsPerThread;
  const size_t per_item = std::clamp<size_t>(tiles / wanted, 1, kMaxTilesPerItem);
  context.pool.parallel_for((tiles + per_item - 1) / per_item, [&](size_t item, int thread) {
    const size_t end = std::min(tiles, (item + 1) * per_item);
    for (size_t tile = item * per_item; tile < end; ++tile) {
      float* target = out + tile * kTileRows;
      float* product = add ? context.act.gate[thread].data() : target;
      const size_t stride = add ? kTileRows : out_stride;
      tile_matmul(context.kernels, weight, tile, rows, panels, num_tokens,
                  context.act.unpacked[thread].data(), product, stride);
      if (bias == nullptr) continue;
      const float* tile_bias = bias + tile * kTileRows;
      for (size_t t = 0; t < num_tokens; ++t) {
        float* to = target + t * out_stride;
        const float* from = product + t * stride;
        for (size_t r = 0; r < kTileRows; ++r) {
          to[r] = add ? to[r] + (from[r] + tile_bias[r]) : from[r] + tile_bias[r];
        }
      }
    }
  });
}

void tap_rows(ForwardContext& context, size_t layer, const char* point, const float* data,
              size_t width, size_t stride) {
  Taps* taps = context.batch.taps;
  if (taps == nullptr) return;
  taps->put(Taps::name(layer, point), data, context.batch.num_tokens, width, stride);
}

Model::Model(ModelShape shape, const PackedTensors& tensors, const Kernels& kernels,
             int num_threads, size_t max_batch_tokens)
    : shape_(std::move(shape)),
      weights_(make_weights(shape_, tensors)),
      kernels_(kernels),
      pool_(num_threads),
      activations_(shape_, max_batch_tokens, num_threads) {
  check(max_batch_tokens >= 1, "max_batch_tokens is ", max_batch_tokens, "; expected at least 1");
}

void Model::reserve(const Batch& batch) {
  size_t low = activations_.max_low;
  size_t chosen = activations_.max_chosen;
  for (const Variant* variant : batch.variants) {
    if (variant == nullptr) continue;
    low = std::max(low, variant->max_low());
    chosen = std::max(chosen, variant->max_experts_per_token());
  }
  if (chosen > activations_.max_chosen) {
    activations_ = Activations(shape_, max_batch_tokens(), num_threads(), chosen);
  }
  if (low > activations_.max_low) {
    activations_.low.resize(activations_.max_slots * low);
    activations_.max_low = low;
  }
}

void Model::check_batch(const KvPages& pages, const Batch& batch) const {
  check(pages.fits(shape_),
        "the cache belongs to a model of another shape; expected one made by "
        "this model's new_cache");
  check(batch.num_tokens >= 1 && batch.num_tokens <= max_batch_tokens(), "the batch has ",
        batch.num_tokens, " tokens; expected 1..", max_batch_tokens());
  check(batch.num_outputs <= max_batch_tokens(), "the batch wants ", batch.num_outputs,
        " rows of logits; expected at most ", max_batch_tokens());
  check(batch.variants.empty() || batch.variants.size() == batch.num_sequences, "there are ",
        batch.variants.size(),
        " variants; expected one a row of the page tables: ", batch.num_sequences);
  for (const Variant* variant : batch.variants) {
    check(variant == nullptr || variant->belongs_to(weights_),
          "a variant belongs to another model; expected one made by this model's new_variant");
  }
  for (size_t i = 0; i < batch.num_outputs; ++i) {
    const int32_t row = batch.output_rows[i];
    check(row >= 0 && static_cast<size_t>(row) < batch.num_tokens, "output row ", row,
          " is out of range; the batch has ", batch.num_tokens, " tokens");
  }
  for (size_t t = 0; t < batch.num_tokens; ++t) {
    const int32_t id = batch.token_ids[t];
    const int32_t sequence = batch.sequences[t];
    const int32_t position = batch.positions[t];
    check(id >= 0 && static_cast<size_t>(id) < shape_.vocab_size, "token id ", id,
          " is out of range; the vocabulary has ", shape_.vocab_size, " entries");
    check(sequence >= 0 && static_cast<size_t>(sequence) < batch.num_sequences, "sequence ",
          sequence, " is out of range; the page tables have ", batch.num_sequences, " rows");
    check(position >= 0, "position ", position, " is negative");
    if (t > 0 && batch.sequences[t - 1] == sequence) {
      check(position == batch.positions[t - 1] + 1, "position ", position, " follows ",
            batch.positions[t - 1], " in sequence ", sequence, "; expected the next one");
    }
    for (size_t group = 0; group < pages.num_groups(); ++group) {
      const size_t window = shape_.group_windows[group];
      const size_t oldest =
          window == 0 || size_t(position) + 1 <= window ? 0 : size_t(position) + 1 - window;
      const size_t last = position / kPageTokens;
      check(last < batch.max_pages[group], "position ", position, " needs page ", last,
            " of its table; group ", group, " has ", batch.max_pages[group]);
      // The first token of a run checks all it can see, the following ones only what is new.
      const bool first = t == 0 || batch.sequences[t - 1] != sequence;
      for (size_t p = first ? oldest / kPageTokens : last; p <= last; ++p) {
        const int32_t page = batch.page_tables[group][sequence * batch.max_pages[group] + p];
        check(page >= 0 && static_cast<size_t>(page) < pages.num_pages(group), "sequence ",
              sequence, ", group ", group, ": page ", page, " of table entry ", p,
              " is out of range; the cache has ", pages.num_pages(group));
      }
    }
  }
}

void Model::forward(KvPages& pages, const Batch& batch, float* logits) {
  check_batch(pages, batch);
  reserve(batch);
  const FloatEnvironment environment;
  Activations& act = activations_;
  ForwardContext context{shape_, weights_, kernels_, pool_, act, pages, batch};
  const size_t hidden = shape_.hidden_size;
  pool_.parallel_for(batch.num_tokens, [&](size_t token, int) {
    embed(weights_, hidden, batch.token_ids[token], act.x.data() + token * hidden);
  });
  fill_rope(context);
  for (size_t layer = 0; layer < shape_.layers.size(); ++layer) {
    change_residual(context, layer, &VariantLayer::resid_pre, "resid_pre");
    attention_layer(context, layer);
    change_residual(context, layer, &VariantLayer::resid_mid, "resid_mid");
    moe_layer(context, layer);
    change_residual(context, layer, &VariantLayer::resid_post, "resid_post");
  }
  if (batch.num_outputs == 0) return;
  const Q8Panels q8_normed = act.q8.panels(hidden, batch.num_outputs);
  pool_.parallel_for(batch.num_outputs, [&](size_t i, int) {
    float* normed = act.normed.data() + i * hidden;
    const Variant* variant = context.variant(batch.output_rows[i]);
    const float* norm = vector_or(variant ? &variant->norm() : nullptr, weights_.norm);
    kernels_.f32_rmsnorm(act.x.data() + batch.output_rows[i] * hidden, norm, shape_.rms_norm_eps,
                         hidden, normed);
    if (weights_.quantized) quantize_row(kernels_, normed, i, kQ8Offset, q8_normed);
  });
  dense_matmul(context, weights_.head, {act.normed.data(), hidden}, q8_normed, batch.num_outputs,
               nullptr, false, logits, logits_stride());
  if (batch.taps != nullptr) {
    batch.taps->put("final_norm", act.normed.data(), batch.num_outputs, hidden, hidden);
    batch.taps->put("logits", logits, batch.num_outputs, shape_.vocab_size, logits_stride());
  }
}

}  // namespace aperto
