// What this CPU can run.
#pragma once

#include <string>
#include <vector>

namespace aperto {

struct CpuInfo {
  bool avx2 = false;         // AVX2, FMA and F16C
  bool avx512 = false;       // AVX-512 F, BW, VL and DQ
  bool avx512_vnni = false;  // the above and AVX512-VNNI
  bool amx = false;          // the above and the matrix unit for bytes, which the kernel must allow
};

// Features of the CPU and of the operating system's register saving, read once.
const CpuInfo& cpu_info();

}  // namespace aperto
