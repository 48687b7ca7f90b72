// The shape of a model, as the forward pass needs it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace aperto {

struct LayerShape {
  size_t window;  // tokens a query sees, itself included; 0: all
  size_t num_experts;
  size_t experts_per_token;
  size_t group;  // index into ModelShape::group_windows
};

struct ModelShape {
  size_t vocab_size;
  size_t hidden_size;
  size_t intermediate_size;
  size_t head_dim;
  size_t num_heads;
  size_t num_kv_heads;
  float swiglu_limit;
  float rms_norm_eps;
  float rope_concentration;           // factor of cosines and sines
  std::vector<float> rope_frequency;  // [head_dim / 2], radians a token
  std::vector<LayerShape> layers;
  std::vector<size_t> group_windows;  // distinct windows: layers of one window share page tables

  size_t q_size() const { return num_heads * head_dim; }
  size_t kv_size() const { return num_kv_heads * head_dim; }
  size_t qkv_size() const { return q_size() + 2 * kv_size(); }
  size_t heads_per_kv_head() const { return num_heads / num_kv_heads; }
};

}  // namespace aperto
