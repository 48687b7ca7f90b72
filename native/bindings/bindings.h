// What the binding files share.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <cstdint>

#include "base/check.h"

namespace aperto {

template <typename T, typename... Shape>
using Array =
    nanobind::ndarray<T, nanobind::numpy, nanobind::c_contig, nanobind::device::cpu, Shape...>;
template <typename T>
using In1 = Array<const T, nanobind::ndim<1>>;
template <typename T>
using In2 = Array<const T, nanobind::ndim<2>>;
template <typename T>
using In3 = Array<const T, nanobind::ndim<3>>;
template <typename T>
using AnyStride2 =
    nanobind::ndarray<const T, nanobind::numpy, nanobind::device::cpu, nanobind::ndim<2>>;
template <typename T>
using Out1 = Array<T, nanobind::ndim<1>>;
template <typename T>
using Out2 = Array<T, nanobind::ndim<2>>;
template <typename T>
using Out3 = Array<T, nanobind::ndim<3>>;

// A new NumPy array that owns its memory.
template <typename T>
Array<T> new_array(std::initializer_list<size_t> shape) {
  size_t count = 1;
  for (const size_t extent : shape) count *= extent;
  T* data = new T[count];
  nanobind::capsule owner(data, [](void* p) noexcept { delete[] static_cast<T*>(p); });
  return Array<T>(data, shape, owner);
}

void bind_kernels(nanobind::module_& m);
void bind_model(nanobind::module_& m);
void bind_probes(nanobind::module_& m);

}  // namespace aperto
