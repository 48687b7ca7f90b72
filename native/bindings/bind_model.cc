// The model, its cache and the sampler.
#include <nanobind/stl/pair.h>
#include <nanobind/stl/set.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/unique_ptr.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/bindings.h"
#include "kernels/dispatch.h"
#include "model/forward.h"
#include "sample/sampler.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace aperto {
namespace {

template <typename T>
T read(nb::handle object, const char* name) {
  return nb::cast<T>(object.attr(name));
}

// Reads an aperto.config.ModelConfig, which has checked its own ranges.
ModelShape read_shape(nb::handle config) {
  ModelShape shape;
  shape.vocab_size = read<size_t>(config, "vocab_size");
  shape.hidden_size = read<size_t>(config, "hidden_size");
  shape.intermediate_size = read<size_t>(config, "intermediate_size");
  shape.head_dim = read<size_t>(config, "head_dim");
  shape.num_heads = read<size_t>(config, "num_attention_heads");
  shape.num_kv_heads = read<size_t>(config, "num_key_value_heads");
  shape.swiglu_limit = read<float>(config, "swiglu_limit");
  shape.rms_norm_eps = read<float>(config, "rms_norm_eps");
  nb::object rope = config.attr("rope");
  shape.rope_concentration = read<float>(rope, "concentration");
  shape.rope_frequency = nb::cast<std::vector<float>>(rope.attr("frequencies")(shape.head_dim));
  shape.group_windows = read<std::vector<size_t>>(config, "window_groups");
  for (nb::handle layer : config.attr("layers")) {
    const size_t window = read<size_t>(layer, "window");
    const auto& windows = shape.group_windows;
    const auto group = std::find(windows.begin(), windows.end(), window);
    shape.layers.push_back({window, read<size_t>(layer, "num_experts"),
                            read<size_t>(layer, "experts_per_token"),
                            static_cast<size_t>(group - windows.begin())});
  }
  return shape;
}

KvKind parse_kv_kind(const std::string& name) {
  check(name == "f16" || name == "f32", "KV cache type is '", name, "'; expected f16 or f32");
  return name == "f16" ? KvKind::kF16 : KvKind::kF32;
}

// A model together with the arrays its weights lie in.
class BoundModel {
 public:
  // tensors: name -> (kind, uint8 array).
  BoundModel(nb::object config, nb::dict tensors, const std::string& isa, int num_threads,
             size_t max_batch_tokens)
      : config_(config), tensors_(tensors) {
    PackedTensors packed;
    for (auto [name, value] : tensors) {
      auto [kind, data] = nb::cast<std::tuple<std::string, In1<uint8_t>>>(value);
      packed[nb::cast<std::string>(name)] = {parse_weight_kind(kind), data.data(), data.size()};
    }
    model_ = std::make_unique<Model>(read_shape(config), packed, select_kernels(isa), num_threads,
                                     max_batch_tokens);
  }

  nb::object config() const { return config_; }
  const Model& model() const { return *model_; }

  nb::object forward(KvPages& pages, In1<int32_t> token_ids, In1<int32_t> positions,
                     In1<int32_t> sequences, std::vector<In2<int32_t>> page_tables,
                     In1<int32_t> output_rows, nb::object variants, Taps* taps) {
    check(positions.size() == token_ids.size() && sequences.size() == token_ids.size(),
          "positions and seq_idx have ", positions.size(), " and ", sequences.size(),
          " entries; expected ", token_ids.size(), ", one a token");
    check(page_tables.size() == model_->shape().group_windows.size() &&
              page_tables.size() == pages.num_groups(),
          "there are ", page_tables.size(),
          " page tables; expected one a window group: ", model_->shape().group_windows.size());
    Batch batch{token_ids.size(),
                token_ids.data(),
                positions.data(),
                sequences.data(),
                page_tables[0].shape(0),
                {},
                {},
                output_rows.size(),
                output_rows.data(),
                {},
                taps};
    if (!variants.is_none()) {
      for (nb::handle variant : variants) {
        batch.variants.push_back(variant.is_none() ? nullptr : nb::cast<const Variant*>(variant));
      }
    }
    if (taps != nullptr) taps->taken.clear();
    for (const auto& table : page_tables) {
      check(table.shape(0) == batch.num_sequences, "page tables have ", table.shape(0), " and ",
            batch.num_sequences, " rows; expected the same");
      batch.page_tables.push_back(table.data());
      batch.max_pages.push_back(table.shape(1));
    }
    auto logits = new_array<float>({output_rows.size(), model_->logits_stride()});
    {
      nb::gil_scoped_release release;
      model_->forward(pages, batch, logits.data());
    }
    nb::object array = nb::cast(logits);
    if (model_->logits_stride() == model_->shape().vocab_size) return array;
    return array[nb::make_tuple(nb::slice(nb::none(), nb::none(), nb::none()),
                                nb::slice(static_cast<Py_ssize_t>(model_->shape().vocab_size)))];
  }

 private:
  nb::object config_;
  nb::dict tensors_;  // keeps the mapped files alive
  std::unique_ptr<Model> model_;
};

// What the last batch left at the points, as arrays.
nb::dict take_taps(Taps& taps) {
  nb::dict arrays;
  for (auto& [name, tap] : taps.taken) {
    auto* values = new std::vector<float>(std::move(tap.values));
    nb::capsule owner(values, [](void* p) noexcept { delete static_cast<std::vector<float>*>(p); });
    arrays[name.c_str()] =
        nb::ndarray<nb::numpy, float>(values->data(), tap.shape.size(), tap.shape.data(), owner);
  }
  taps.taken.clear();
  return arrays;
}

void bind_variants(nb::module_& m) {
  nb::class_<Variant>(m, "Variant", "What rows of a batch change in the model.")
      .def(
          "set_low_rank",
          [](Variant& variant, size_t layer, const std::string& part, size_t expert, In2<float> a,
             In2<float> b) {
            check(a.shape(0) == b.shape(1), "A has ", a.shape(0), " rows and B ", b.shape(1),
                  " columns; expected the same rank");
            variant.set_low_rank(layer, part, expert, a.shape(0), a.data(), a.shape(1), b.data(),
                                 b.shape(0));
          },
          "layer"_a, "part"_a, "expert"_a, "a"_a, "b"_a, "Add B A to the weight of a product.")
      .def(
          "set_bias",
          [](Variant& variant, size_t layer, const std::string& part, size_t expert,
             In1<float> values, bool replace) {
            variant.set_bias(layer, part, expert, values.data(), values.size(), replace);
          },
          "layer"_a, "part"_a, "expert"_a, "values"_a, "replace"_a,
          "Add to the bias of a product, or replace it.")
      .def(
          "replace_vector",
          [](Variant& variant, size_t layer, const std::string& name, In1<float> values) {
            variant.replace_vector(layer, name, values.data(), values.size());
          },
          "layer"_a, "name"_a, "values"_a, "Replace a norm or the sinks.")
      .def(
          "set_residual",
          [](Variant& variant, size_t layer, const std::string& point, float scale,
             In1<float> values) {
            variant.set_residual(layer, point, scale, values.data(), values.size());
          },
          "layer"_a, "point"_a, "scale"_a, "values"_a, "Scale the residual stream, then add.")
      .def("set_experts_per_token", &Variant::set_experts_per_token, "layer"_a, "count"_a,
           "Choose this many experts.");
  nb::class_<Taps>(m, "Taps", "Copies of what passes named points of a forward pass.")
      .def(nb::init<std::set<std::string>>(), "points"_a)
      .def("take", &take_taps, "What the last batch left, [tokens, ...] by point.");
}

using Logits = nb::ndarray<const float, nb::numpy, nb::ndim<2>, nb::device::cpu>;

template <typename T>
std::span<const T> span_of(const In1<T>& array) {
  return {array.data(), array.size()};
}

// The fields of an aperto.engine.sampling.SampleRow, and the arrays its spans point into.
struct BoundRow {
  In1<int32_t> bias_ids;
  In1<float> bias_values;
  In1<int32_t> count_ids;
  In1<int32_t> counts;
  In1<uint32_t> mask;
  SampleRequest request;

  explicit BoundRow(nb::handle row)
      : bias_ids(read<In1<int32_t>>(row, "bias_ids")),
        bias_values(read<In1<float>>(row, "bias_values")),
        count_ids(read<In1<int32_t>>(row, "count_ids")),
        counts(read<In1<int32_t>>(row, "counts")),
        request{read<double>(row, "temperature"),
                read<double>(row, "top_p"),
                read<double>(row, "min_p"),
                read<size_t>(row, "top_k"),
                read<double>(row, "presence_penalty"),
                read<double>(row, "frequency_penalty"),
                read<double>(row, "repetition_penalty"),
                span_of(bias_ids),
                span_of(bias_values),
                span_of(count_ids),
                span_of(counts),
                {},
                read<uint64_t>(row, "seed"),
                read<uint64_t>(row, "position"),
                read<size_t>(row, "num_top_logprobs")} {
    check(bias_ids.size() == bias_values.size() && count_ids.size() == counts.size(),
          "ids and values of a sample row differ in length");
    nb::object mask_object = row.attr("mask");
    if (!mask_object.is_none()) {
      mask = nb::cast<In1<uint32_t>>(mask_object);
      request.mask = span_of(mask);
    }
  }
};

using BoundResult = std::tuple<int32_t, float, std::vector<std::pair<int32_t, float>>>;

std::vector<BoundResult> sample(Logits logits, nb::sequence rows) {
  check(logits.shape(1) > 0 && logits.stride(1) == 1, "logits have ", logits.shape(1),
        " columns; expected at least one, contiguous");
  check(nb::len(rows) == logits.shape(0), "there are ", nb::len(rows), " sample rows; expected ",
        logits.shape(0), ", one a row of logits");
  std::vector<BoundRow> bound;
  for (nb::handle row : rows) bound.emplace_back(row);
  std::vector<SampleResult> results;
  {
    nb::gil_scoped_release release;
    Sampler sampler(select_kernels(""), logits.shape(1));
    for (size_t i = 0; i < bound.size(); ++i) {
      results.push_back(sampler.sample(logits.data() + i * logits.stride(0), bound[i].request));
    }
  }
  std::vector<BoundResult> tuples;
  for (SampleResult& r : results) tuples.emplace_back(r.token, r.logprob, std::move(r.top));
  return tuples;
}

}  // namespace

void bind_model(nb::module_& m) {
  using PageView = nb::ndarray<nb::numpy, uint8_t, nb::ndim<1>, nb::c_contig>;
  nb::class_<KvPages>(m, "KvCache", "Pages of keys and values, one pool a window group.")
      .def("copy_page", &KvPages::copy_page, "group"_a, "source"_a, "destination"_a,
           "Copy a page within its group.")
      .def(
          "page",
          [](nb::handle_t<KvPages> self, size_t group, size_t page) {
            KvPages& cache = nb::cast<KvPages&>(self);
            uint8_t* data = cache.page(group, page);
            return PageView(data, {cache.page_bytes(group)}, self);
          },
          "group"_a, "page"_a, "The bytes of a page, in place: to save them, and to fill them.")
      .def("num_pages", &KvPages::num_pages, "group"_a, "Pages of a window group.")
      .def_prop_ro("nbytes", &KvPages::bytes, "Bytes reserved for all pages.");

  bind_variants(m);
  nb::class_<BoundModel>(m, "Model", "The forward pass over packed weights.")
      .def(nb::init<nb::object, nb::dict, const std::string&, int, size_t>(), "config"_a,
           "tensors"_a, "isa"_a, "num_threads"_a, "max_batch_tokens"_a)
      .def("forward", &BoundModel::forward, "cache"_a, "token_ids"_a, "positions"_a, "seq_idx"_a,
           "page_tables"_a, "output_rows"_a, "variants"_a = nb::none(), "taps"_a = nb::none(),
           "Run a batch; returns the logits [outputs, vocab] of its output rows.")
      .def(
          "new_cache",
          [](const BoundModel& model, const std::vector<size_t>& num_pages,
             const std::string& kind) {
            return std::make_unique<KvPages>(model.model().shape(), parse_kv_kind(kind), num_pages);
          },
          "num_pages"_a, "kind"_a, "Allocate pages, one count a window group.")
      .def(
          "page_bytes",
          [](const BoundModel& model, size_t group, const std::string& kind) {
            check(group < model.model().shape().group_windows.size(), "window group ", group,
                  " does not exist");
            return KvPages::page_bytes(model.model().shape(), parse_kv_kind(kind), group);
          },
          "group"_a, "kind"_a, "Bytes of one page of a window group.")
      .def(
          "new_variant", [](const BoundModel& model) { return model.model().new_variant(); },
          nb::keep_alive<0, 1>(), "A variant that changes nothing yet.")
      .def_prop_ro("config", &BoundModel::config)
      .def_prop_ro("isa", [](const BoundModel& model) { return model.model().kernels().name; })
      .def_prop_ro("num_threads",
                   [](const BoundModel& model) { return model.model().num_threads(); })
      .def_prop_ro("max_batch_tokens",
                   [](const BoundModel& model) { return model.model().max_batch_tokens(); });
  m.def("sample", &sample, "logits"_a, "rows"_a,
        "Draw a token for each row: (token id, logprob, [(id, logprob), ...]).");
  m.def(
      "log_sum_exp",
      [](In1<float> logits) {
        check(logits.size() > 0, "the row has no logits; expected at least one");
        return Sampler(select_kernels(""), logits.size()).log_sum_exp(logits.data());
      },
      "logits"_a, "Log of the sum of exponentials of one row of logits.");
  m.def("counter_uniform", &counter_uniform, "seed"_a, "position"_a,
        "The number in [0, 1) behind a draw.");
}

}  // namespace aperto
