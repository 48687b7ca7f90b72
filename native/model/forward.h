// The model: weights, kernels, threads and scratch, and one call that runs a batch through them.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "base/thread_pool.h"
#include "cache/kv_pages.h"
#include "kernels/kernels.h"
#include "model/activations.h"
#include "model/config.h"
#include "model/taps.h"
#include "model/variant.h"
#include "model/weights.h"

namespace aperto {

// Tokens of any number of sequences. Tokens of one sequence are consecutive, in order of position.
struct Batch {
  size_t num_tokens;
  const int32_t* token_ids;  // [tokens]
  const int32_t* positions;  // [tokens], index in the sequence
  const int32_t* sequences;  // [tokens], row of the page tables
  size_t num_sequences;
  // A table a window group: [sequences, max_pages]; entry p / kPageTokens is the page of position
  // p.
  std::vector<const int32_t*> page_tables;
  std::vector<size_t> max_pages;  // a group
  size_t num_outputs;
  const int32_t* output_rows;            // [outputs], tokens whose logits are wanted
  std::vector<const Variant*> variants;  // [sequences], nullptr: the base; empty: the base for all
  Taps* taps = nullptr;                  // where to copy what passes; nullptr: nowhere
};

// What the parts of a forward pass share.
struct ForwardContext {
  const ModelShape& shape;
  const Weights& weights;
  const Kernels& kernels;
  ThreadPool& pool;
  Activations& act;
  KvPages& pages;
  const Batch& batch;

  // The variant of a token, nullptr for the base.
  const Variant* variant(size_t token) const {
    return batch.variants.empty() ? nullptr : batch.variants[batch.sequences[token]];
  }
  // What a token's variant does in a layer, nullptr for the base.
  const VariantLayer* changes(size_t layer, size_t token) const {
    const Variant* of = variant(token);
    return of == nullptr ? nullptr : &of->layer(layer);
  }
};

// A vector of the variant where it has one, else the base's.
inline const float* vector_or(const std::vector<float>* own, const float* base) {
  return own == nullptr || own->empty() ? base : own->data();
}

// Copies the tokens' rows at a point of a layer to the batch's taps, if they want it.
void tap_rows(ForwardContext& context, size_t layer, const char* point, const float* data,
              size_t width, size_t stride);

// out[t * out_stride + r] = a[t] . w[r] (+ bias[r]) for t < num_tokens, padded to whole tiles.
// With `add`, adds to out instead. Uses the float rows or, for Q8 weights, the quantised panels.
void dense_matmul(ForwardContext& context, const TiledWeight& weight, const F32Rows& rows,
                  const Q8Panels& panels, size_t num_tokens, const float* bias, bool add,
                  float* out, size_t out_stride);

class Model {
 public:
  // `kernels` must outlive the model, as must the memory behind `tensors`.
  Model(ModelShape shape, const PackedTensors& tensors, const Kernels& kernels, int num_threads,
        size_t max_batch_tokens);

  const ModelShape& shape() const { return shape_; }
  const Kernels& kernels() const { return kernels_; }
  bool quantized() const { return weights_.quantized; }
  int num_threads() const { return pool_.num_threads(); }
  size_t max_batch_tokens() const { return activations_.max_tokens; }
  // Floats between two rows of logits: the vocabulary rounded up to whole tiles.
  size_t logits_stride() const { return round_up(shape_.vocab_size, kTileRows); }

  // Writes keys and values of the batch into its pages and the logits of its output rows,
  // [outputs, logits_stride]. Throws std::invalid_argument for a batch that does not fit.
  void forward(KvPages& pages, const Batch& batch, float* logits);

  // A variant that changes nothing yet; it must not outlive the model.
  std::unique_ptr<Variant> new_variant() const {
    return std::make_unique<Variant>(shape_, weights_);
  }

 private:
  void check_batch(const KvPages& pages, const Batch& batch) const;
  // Makes room for variants that choose more experts or have longer projections.
  void reserve(const Batch& batch);

  ModelShape shape_;
  Weights weights_;
  const Kernels& kernels_;
  ThreadPool pool_;
  Activations activations_;
};

}  // namespace aperto
