// Scalar forms of the arithmetic every kernel set shares, step by step the same as the vector ones.
// Everything is static: a weak symbol could be kept in the copy of a file built for AVX-512.
#pragma once

#include <cstdint>

namespace aperto {

// exp(x) = 2^n * exp(r), r in [-ln2/2, ln2/2] by a two-part ln2, degree-6 polynomial: 1 ulp.
static constexpr float kExpMin = -87.0f;  // below: exactly 0, so no denormal is ever made
static constexpr float kExpMax = 88.0f;
static constexpr float kLog2E = 1.44269504088896341f;
static constexpr float kLn2High = 0.693359375f;
static constexpr float kLn2Low = -2.12194440e-4f;
static constexpr float kExpC7 = 1.9875691500e-4f;
static constexpr float kExpC6 = 1.3981999507e-3f;
static constexpr float kExpC5 = 8.3334519073e-3f;
static constexpr float kExpC4 = 4.1665795894e-2f;
static constexpr float kExpC3 = 1.6666665459e-1f;
static constexpr float kExpC2 = 5.0000001201e-1f;

// Blocks whose largest magnitude is under this are stored as zeros: 127 / amax would overflow.
static constexpr float kMinAmax = 1e-30f;

static inline float scalar_exp(float x) {
  if (!(x >= kExpMin)) return 0.0f;
  if (x > kExpMax) x = kExpMax;
  const float n = __builtin_nearbyintf(x * kLog2E);
  float r = __builtin_fmaf(-n, kLn2High, x);
  r = __builtin_fmaf(-n, kLn2Low, r);
  float p = kExpC7;
  p = __builtin_fmaf(p, r, kExpC6);
  p = __builtin_fmaf(p, r, kExpC5);
  p = __builtin_fmaf(p, r, kExpC4);
  p = __builtin_fmaf(p, r, kExpC3);
  p = __builtin_fmaf(p, r, kExpC2);
  p = __builtin_fmaf(p, r * r, r);
  p = p + 1.0f;
  const int32_t bits = (static_cast<int32_t>(n) + 127) << 23;
  float power;
  __builtin_memcpy(&power, &bits, sizeof power);
  return p * power;
}

static inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16;
  const uint32_t exponent = (half >> 10) & 0x1f;
  const uint32_t mantissa = half & 0x3ff;
  uint32_t bits;
  if (exponent == 31) {
    bits = sign | 0x7f800000 | (mantissa << 13);
  } else if (exponent != 0) {
    bits = sign | ((exponent + 112) << 23) | (mantissa << 13);
  } else {
    // Denormal: an exact small integer times 2^-24.
    const float value = static_cast<float>(mantissa) * 5.9604644775390625e-8f;
    uint32_t magnitude;
    __builtin_memcpy(&magnitude, &value, sizeof magnitude);
    bits = sign | magnitude;
  }
  float value;
  __builtin_memcpy(&value, &bits, sizeof value);
  return value;
}

// Round to nearest even; magnitudes past the largest half are clamped to it.
static inline uint16_t float_to_half(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, sizeof bits);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;  // NaN
  if (magnitude >= 0x477fe000) return sign | 0x7bff;
  if (magnitude < 0x38800000) {
    // Denormal half: adding 0.5 aligns its unit, 2^-24, with the float's last bit.
    float absolute;
    __builtin_memcpy(&absolute, &magnitude, sizeof absolute);
    absolute += 0.5f;
    uint32_t aligned;
    __builtin_memcpy(&aligned, &absolute, sizeof aligned);
    return static_cast<uint16_t>(sign | (aligned - 0x3f000000));
  }
  const uint32_t rounded = magnitude + 0xfff + ((magnitude >> 13) & 1);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000) >> 13));
}

static inline float bf16_to_float(uint16_t value) {
  const uint32_t bits = static_cast<uint32_t>(value) << 16;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

// 2^(scale - 128): half an E8M0 scale, the factor of doubled MXFP4 values. scale >= 2.
static inline float half_e8m0(uint8_t scale) {
  const uint32_t bits = static_cast<uint32_t>(scale - 1) << 23;
  float result;
  __builtin_memcpy(&result, &bits, sizeof result);
  return result;
}

}  // namespace aperto
