#include "kernels/dispatch.h"

#include <sstream>
#include <stdexcept>

#include "base/cpu_info.h"

namespace aperto {

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> available = [] {
    std::vector<const Kernels*> list;
#ifdef APERTO_X86
    if (cpu_info().amx) list.push_back(&kAmxKernels);
    if (cpu_info().avx512_vnni) list.push_back(&kAvx512VnniKernels);
    if (cpu_info().avx512) list.push_back(&kAvx512Kernels);
    if (cpu_info().avx2) list.push_back(&kAvx2Kernels);
#endif
    list.push_back(&kReferenceKernels);
    return list;
  }();
  return available;
}

const Kernels& select_kernels(const std::string& name) {
  if (name.empty()) return *available_kernels().front();
  std::ostringstream names;
  for (const Kernels* kernels : available_kernels()) {
    if (name == kernels->name) return *kernels;
    names << ' ' << kernels->name;
  }
  throw std::invalid_argument(
      "instruction set '" + name +
      "' is unknown or not supported by this CPU; expected one of:" + names.str());
}

}  // namespace aperto
