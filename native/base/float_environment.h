// The float mode every thread of the core computes in: round to nearest, denormals kept.
#pragma once

#ifdef APERTO_X86
#include <xmmintrin.h>
#endif

namespace aperto {

// Other libraries switch denormals off in the caller's thread; bits would depend on that.
class FloatEnvironment {
 public:
#ifdef APERTO_X86
  FloatEnvironment() : saved_(_mm_getcsr()) { _mm_setcsr(kDefault); }
  ~FloatEnvironment() { _mm_setcsr(saved_); }

 private:
  static constexpr unsigned kDefault = 0x1f80;  // all exceptions masked, nothing flushed
  unsigned saved_;
#else
  FloatEnvironment() {}
#endif
};

}  // namespace aperto
