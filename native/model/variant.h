// What a variant of the model changes: low-rank deltas, replaced vectors, additions, routing.
//
// A variant belongs to rows of a batch. Everything it does to a row is a chain of operations of
// that row alone, in a fixed order, so company does not change a bit.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "base/aligned_buffer.h"
#include "kernels/kernels.h"
#include "model/config.h"
#include "model/weights.h"

namespace aperto {

// The change of one product y = W x + bias: y += addend + B (A x).
struct LinearChange {
  size_t rank = 0;
  size_t in = 0;
  size_t stride = 0;          // floats between rows of b: outputs rounded up to whole tiles
  std::vector<float> a;       // F32 tiles of [rank, in]
  std::vector<float> b;       // [rank, stride], in the order of the product's rows
  std::vector<float> addend;  // [stride], or empty

  bool empty() const { return rank == 0 && addend.empty(); }
  // low = A x. low: [rank rounded up to whole tiles].
  void project(const Kernels& kernels, const float* x, float* low) const;
  // y += addend + B low for outputs [begin, begin + count), whole tiles.
  void add(const Kernels& kernels, const float* low, size_t begin, size_t count, float* y) const;
};

// x = scale * x + addend at a point of the residual stream.
struct ResidualChange {
  float scale = 1.0f;
  std::vector<float> addend;  // [hidden], or empty

  void apply(const Kernels& kernels, size_t hidden, float* x) const;
};

struct VariantLayer {
  std::vector<float> attn_norm;  // [hidden], or empty: the base's; so with the next two
  std::vector<float> sinks;      // [heads]
  std::vector<float> moe_norm;   // [hidden]
  LinearChange q, k, v, out, router;
  std::vector<LinearChange> gate_up;  // [experts], or empty
  std::vector<LinearChange> down;     // [experts], or empty
  ResidualChange resid_pre, resid_mid, resid_post;
  size_t experts_per_token = 0;  // 0: the base's
};

class Variant {
 public:
  // `shape` and `weights` must outlive the variant.
  Variant(const ModelShape& shape, const Weights& weights);

  // Parts: "attn.q", "attn.k", "attn.v", "attn.out", "moe.router", and with an expert
  // "moe.gate_up" (rows interleaved: even gate, odd up) and "moe.down". All setters throw
  // std::invalid_argument for what the model does not have.
  // y += B (A x). a: [rank, in], b: [out, rank].
  void set_low_rank(size_t layer, const std::string& part, size_t expert, size_t rank,
                    const float* a, size_t a_width, const float* b, size_t b_rows);
  // Adds to the product, or with `replace` puts the values in the place of its bias.
  void set_bias(size_t layer, const std::string& part, size_t expert, const float* values,
                size_t count, bool replace);
  // name: "attn.norm", "attn.sinks", "moe.norm"; "norm" for the last one, whatever the layer.
  void replace_vector(size_t layer, const std::string& name, const float* values, size_t count);
  // point: "resid_pre", "resid_mid", "resid_post". count 0: nothing is added.
  void set_residual(size_t layer, const std::string& point, float scale, const float* values,
                    size_t count);
  void set_experts_per_token(size_t layer, size_t count);

  const VariantLayer& layer(size_t index) const { return layers_[index]; }
  const std::vector<float>& norm() const { return norm_; }
  size_t max_low() const { return max_low_; }  // floats of the longest projection
  size_t max_experts_per_token() const { return max_experts_per_token_; }
  bool belongs_to(const Weights& weights) const { return &weights == &weights_; }

 private:
  struct Target {
    LinearChange* change;
    const float* bias;  // the base's, in the order of its product
    size_t in;
    size_t out;
    bool interleaved;
  };
  Target target(size_t layer, const std::string& part, size_t expert);
  VariantLayer& at(size_t layer);

  const ModelShape& shape_;
  const Weights& weights_;
  std::vector<VariantLayer> layers_;
  std::vector<float> norm_;
  size_t max_low_ = 0;
  size_t max_experts_per_token_ = 0;
};

}  // namespace aperto
