// The two elementwise pieces of training that torch is slow at on a CPU: softmax with sinks over
// the few scores a token may see, and the clamped SwiGLU over interleaved pairs. bfloat16 tensors
// are read as raw 16-bit words; arithmetic is float32. One thread: training runs a process a core.

#include <torch/extension.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <vector>

namespace {

inline float low(uint32_t pair) { return std::bit_cast<float>(pair << 16); }
inline float high(uint32_t pair) { return std::bit_cast<float>(pair & 0xffff0000u); }
inline float widen(uint16_t bits) { return low(bits); }

inline float clamped(float value, float bound) {
  const float lower = value < -bound ? -bound : value;
  return lower > bound ? bound : lower;
}

inline uint32_t rounded(float value) {  // to nearest even, left in the upper half
  const uint32_t word = std::bit_cast<uint32_t>(value);
  return word + 0x7fffu + ((word >> 16) & 1u);
}

inline uint16_t narrow(float value) { return static_cast<uint16_t>(rounded(value) >> 16); }

template <class T>
T* data(const torch::Tensor& tensor) {
  TORCH_CHECK(tensor.is_contiguous(), "expected a contiguous tensor");
  return reinterpret_cast<T*>(tensor.data_ptr());
}

}  // namespace

// scores [B, Q, T, T] become shares in place; row t sees columns first[b, t] to t.
// Returns the share of each row's sink, [B, Q, T].
torch::Tensor softmax(torch::Tensor scores, torch::Tensor sinks, torch::Tensor first, double scale) {
  const int64_t batch = scores.size(0), heads = scores.size(1), steps = scores.size(2);
  auto sink_shares = torch::empty({batch, heads, steps}, torch::kFloat32);
  auto* const s = data<uint16_t>(scores);
  const auto* const starts = data<int64_t>(first);
  const auto* const sink = data<uint16_t>(sinks);
  auto* const out = data<float>(sink_shares);
  std::vector<float> line(steps);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < steps; ++t) {
        const int64_t row = (b * heads + h) * steps + t, from = starts[b * steps + t];
        uint16_t* const x = s + row * steps;
        const float own = widen(sink[h]);
        const float factor = static_cast<float>(scale);
        float top = own, sum = 0;
        #pragma GCC ivdep
        for (int64_t j = from; j <= t; ++j) {
          line[j] = widen(x[j]) * factor;
          top = std::max(top, line[j]);
        }
        #pragma GCC ivdep
        for (int64_t j = from; j <= t; ++j) {
          line[j] = std::exp(line[j] - top);
          sum += line[j];
        }
        const float sink_share = std::exp(own - top);
        const float inverse = 1.0f / (sum + sink_share);
        std::fill(x, x + from, uint16_t{0});
        #pragma GCC ivdep
        for (int64_t j = from; j <= t; ++j) x[j] = narrow(line[j] * inverse);
        std::fill(x + t + 1, x + steps, uint16_t{0});
        out[row] = sink_share * inverse;
      }
  return sink_shares;
}

// grad [B, Q, T, T] of the shares becomes that of the scores in place; returns that of the sinks.
torch::Tensor softmax_backward(torch::Tensor grad, torch::Tensor shares, torch::Tensor sink_shares,
                               torch::Tensor first, double scale) {
  const int64_t batch = grad.size(0), heads = grad.size(1), steps = grad.size(2);
  auto sink_grads = torch::zeros({heads}, torch::kFloat32);
  auto* const g = data<uint16_t>(grad);
  const auto* const p = data<uint16_t>(shares);
  const auto* const ps = data<float>(sink_shares);
  const auto* const starts = data<int64_t>(first);
  auto* const out = data<float>(sink_grads);
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t t = 0; t < steps; ++t) {
        const int64_t row = (b * heads + h) * steps + t, from = starts[b * steps + t];
        uint16_t* const x = g + row * steps;
        const uint16_t* const share = p + row * steps;
        float mean = 0;
        #pragma GCC ivdep
        for (int64_t j = from; j <= t; ++j) mean += widen(x[j]) * widen(share[j]);
        const float factor = static_cast<float>(scale);
        std::fill(x, x + from, uint16_t{0});
        #pragma GCC ivdep
        for (int64_t j = from; j <= t; ++j)
          x[j] = narrow(widen(share[j]) * (widen(x[j]) - mean) * factor);
        std::fill(x + t + 1, x + steps, uint16_t{0});
        out[h] -= ps[row] * mean;
      }
  return sink_grads;
}

// pairs [M, 2I] (even gate, odd up) -> [M, I]. A pair is one 32-bit word: gate below, up above.
torch::Tensor swiglu(torch::Tensor pairs, double limit) {
  auto out = torch::empty({pairs.size(0), pairs.size(1) / 2}, pairs.options());
  const auto* const x = data<uint32_t>(pairs);
  auto* const y = data<uint16_t>(out);
  const float bound = static_cast<float>(limit);
  const int64_t count = out.numel();
  #pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float raw_gate = low(x[i]), raw_up = high(x[i]);
    const float gate = raw_gate < bound ? raw_gate : bound, up = clamped(raw_up, bound);
    y[i] = narrow(gate / (1.0f + std::exp(-1.702f * gate)) * (up + 1.0f));
  }
  return out;
}

torch::Tensor swiglu_backward(torch::Tensor grad, torch::Tensor pairs, double limit) {
  auto out = torch::empty_like(pairs);
  const auto* const g = data<uint16_t>(grad);
  const auto* const x = data<uint32_t>(pairs);
  auto* const y = data<uint32_t>(out);
  const float bound = static_cast<float>(limit);
  const int64_t count = grad.numel();
  #pragma GCC ivdep
  for (int64_t i = 0; i < count; ++i) {
    const float raw_gate = low(x[i]), raw_up = high(x[i]);
    const float gate = raw_gate < bound ? raw_gate : bound, up = clamped(raw_up, bound);
    const float open = 1.0f / (1.0f + std::exp(-1.702f * gate));
    const float slope = open * (1.0f + 1.702f * gate * (1.0f - open)) * (up + 1.0f);
    const float grad_gate = raw_gate <= bound ? widen(g[i]) * slope : 0.0f;
    const float grad_up = raw_up == up ? widen(g[i]) * gate * open : 0.0f;
    y[i] = (rounded(grad_up) & 0xffff0000u) | (rounded(grad_gate) >> 16);
  }
  return out;
}

PYBIND11_MODULE(TORCH_EXTENSION_NAME, module) {
  module.def("softmax", &softmax);
  module.def("softmax_backward", &softmax_backward);
  module.def("swiglu", &swiglu);
  module.def("swiglu_backward", &swiglu_backward);
}
