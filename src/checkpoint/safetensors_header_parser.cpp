// Reads the JSON of a header event by event instead of into a tree: what it keeps is bounded by what a header may hold,
// and every departure from the format is met where it stands. It takes what safetensors' own reader takes
// (docs/checkpoints.md says what more it refuses).
#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>

#include "base/error.h"
#include "base/strict_json.h"
#include "checkpoint/safetensors_header.h"

namespace conclave {

class SafetensorsHeaderParser : public nlohmann::json_sax<nlohmann::json> {
 public:
  SafetensorsHeaderParser(uint64_t data_begin, uint64_t file_bytes, const std::string& origin)
      : data_bytes_(file_bytes - data_begin), origin_(origin) {
    header_.data_begin_ = data_begin;
    header_.file_bytes_ = file_bytes;
  }

  template <class... Args>
  [[noreturn]] void refuse(fmt::format_string<Args...> reason, Args&&... args) const {
    user_error("{} is not a valid safetensors file: {}.", origin_, fmt::format(reason, std::forward<Args>(args)...));
  }

  // After the last event: checks the whole and hands it over.
  SafetensorsHeader finish() {
    std::sort(header_.tensors_.begin(), header_.tensors_.end(), [](const StoredTensor& a, const StoredTensor& b) {
      return a.begin != b.begin ? a.begin < b.begin : a.end < b.end;
    });
    uint64_t covered = 0;
    for (StoredTensor& tensor : header_.tensors_) {
      if (tensor.begin != covered) {
        refuse(
            "the data of tensor \"{}\" begins at byte {}, but the tensors before it end at {}: the data must be "
            "covered without gap or overlap",
            tensor.name, tensor.begin, covered);
      }
      covered = tensor.end;
      tensor.begin += header_.data_begin_;  // no overflow: within the file, as add_tensor has checked
      tensor.end += header_.data_begin_;
    }
    if (covered != data_bytes_)
      refuse("its tensors have {} bytes, but {} bytes of data follow the header", covered, data_bytes_);
    if (const auto twice = header_.index_names()) refuse("tensor \"{}\" is described twice", *twice);
    return std::move(header_);
  }

  bool start_object(size_t) override {
    if (place_ == Place::unknown) return go_deeper();
    switch (place_) {
      case Place::start:
        place_ = Place::names;
        return true;
      case Place::value_of_metadata:
        place_ = Place::metadata;
        return true;
      case Place::value_of_tensor:
        place_ = Place::tensor;
        return true;
      default:
        unexpected("an object");
    }
  }

  bool key(string_t& key) override {
    if (place_ == Place::unknown) return true;
    switch (place_) {
      case Place::names:
        name_ = key;
        if (key == "__metadata__") {
          if (has_metadata_) refuse("it has \"__metadata__\" twice");
          has_metadata_ = true;
          place_ = Place::value_of_metadata;
        } else {
          tensor_ = StoredTensor{};
          tensor_.name = key;
          has_dtype_ = has_shape_ = has_offsets_ = false;
          place_ = Place::value_of_tensor;
        }
        return true;
      case Place::metadata:
        metadata_key_ = key;
        if (header_.metadata_.contains(key)) refuse("its metadata has the key \"{}\" twice", key);
        return true;
      case Place::tensor:
        begin_field(key);
        return true;
      default:
        unexpected("a key");
    }
  }

  bool end_object() override {
    if (place_ == Place::unknown) {
      --unknown_depth_;
      skip_value();
    } else if (place_ == Place::tensor) {
      add_tensor();
      place_ = Place::names;
    } else if (place_ == Place::metadata) {
      place_ = Place::names;
    }
    return true;
  }

  bool start_array(size_t) override {
    if (place_ == Place::unknown) return go_deeper();
    if (place_ == Place::value_of_shape) {
      place_ = Place::shape;
    } else if (place_ == Place::value_of_offsets) {
      place_ = Place::offsets;
    } else {
      unexpected("an array");
    }
    return true;
  }

  bool end_array() override {
    if (place_ == Place::unknown) {
      --unknown_depth_;
      return skip_value();
    }
    if (place_ == Place::offsets && offsets_seen_ != 2) {
      refuse("data_offsets of tensor \"{}\" has {} numbers instead of 2", name_, offsets_seen_);
    }
    place_ = Place::tensor;
    return true;
  }

  bool string(string_t& value) override {
    if (skip_value()) return true;
    if (place_ == Place::metadata) {
      header_.metadata_.emplace(metadata_key_, value);
    } else if (place_ == Place::value_of_dtype) {
      const std::optional<StoredDtype> dtype = stored_dtype_named(value);
      if (!dtype) refuse("tensor \"{}\" has the unknown type \"{}\"", name_, value);
      tensor_.dtype = *dtype;
      place_ = Place::tensor;
    } else {
      unexpected("a string");
    }
    return true;
  }

  bool number_unsigned(number_unsigned_t value) override {
    if (skip_value()) return true;
    if (place_ == Place::shape) {
      if (value > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
        refuse("tensor \"{}\" has a dim of size {}", name_, value);
      }
      if (tensor_.shape.size() == most_dims) refuse("tensor \"{}\" has more than {} dims", name_, most_dims);
      tensor_.shape.push_back(static_cast<int64_t>(value));
    } else if (place_ == Place::offsets) {
      if (offsets_seen_ < 2) (offsets_seen_ == 0 ? tensor_.begin : tensor_.end) = value;
      ++offsets_seen_;
    } else {
      unexpected("a number");
    }
    return true;
  }

  bool number_integer(number_integer_t value) override {
    if (skip_value()) return true;
    if (place_ == Place::shape || place_ == Place::offsets)
      refuse("tensor \"{}\" has the negative number {}", name_, value);
    unexpected("a number");
  }
  bool number_float(number_float_t, const string_t& text) override {
    if (skip_value()) return true;
    if (place_ == Place::shape || place_ == Place::offsets) {
      refuse("tensor \"{}\" has the number {}, which is not an integer of 64 bits", name_, text);
    }
    unexpected("a number");
  }
  bool null() override {
    if (skip_value()) return true;
    if (place_ != Place::value_of_metadata) unexpected("null");
    place_ = Place::names;  // no metadata
    return true;
  }
  bool boolean(bool) override {
    if (skip_value()) return true;
    unexpected("true or false");
  }
  bool binary(binary_t&) override { unexpected("binary data"); }

  bool parse_error(size_t position, const std::string&, const nlohmann::json::exception& error) override {
    refuse("its header is not valid JSON at byte {}: {}", position, reason_of(error));
  }

 private:
  enum class Place {
    start,              // before the outermost object
    names,              // in it, between tensors
    value_of_metadata,  // after "__metadata__"
    metadata,           // in its object
    value_of_tensor,    // after a tensor's name
    tensor,             // in its object, between fields
    value_of_dtype,
    value_of_shape,
    shape,
    value_of_offsets,
    offsets,
    unknown,  // in the value of a tensor's key that means nothing here
  };
  static constexpr size_t most_dims = 64;  // as many as a tensor can have

  [[noreturn]] void unexpected(const char* what) const {
    if (place_ == Place::start) refuse("its header is not an object");
    if (place_ == Place::metadata || place_ == Place::value_of_metadata) {
      refuse("its \"__metadata__\" must map strings to strings, but has {}", what);
    }
    refuse("its header has {} where none is expected, in the description of tensor \"{}\"", what, name_);
  }

  // In a value that means nothing: goes into an object or array of it.
  bool go_deeper() {
    constexpr int of_a_tensor = 2;  // objects that a tensor's keys lie in
    if (of_a_tensor + ++unknown_depth_ > deepest_json)
      refuse("its header is nested deeper than {} levels", deepest_json);
    return true;
  }
  // Whether the value that has ended means nothing. After a whole one the next key counts again.
  bool skip_value() {
    if (place_ != Place::unknown) return false;
    if (unknown_depth_ == 0) place_ = Place::tensor;
    return true;
  }

  void begin_field(const std::string& key) {
    bool* seen = key == "dtype"          ? &has_dtype_
                 : key == "shape"        ? &has_shape_
                 : key == "data_offsets" ? &has_offsets_
                                         : nullptr;
    if (seen == nullptr) {
      place_ = Place::unknown;
      return;
    }
    if (*seen) refuse("tensor \"{}\" has the key \"{}\" twice", name_, key);
    *seen = true;
    offsets_seen_ = 0;
    place_ = key == "dtype" ? Place::value_of_dtype : key == "shape" ? Place::value_of_shape : Place::value_of_offsets;
  }

  void add_tensor() {
    const char* missing = !has_dtype_ ? "dtype" : !has_shape_ ? "shape" : !has_offsets_ ? "data_offsets" : nullptr;
    if (missing != nullptr) refuse("tensor \"{}\" has no {}", name_, missing);
    if (tensor_.end < tensor_.begin)
      refuse("the data of tensor \"{}\" ends at byte {}, before it begins at {}", name_, tensor_.end, tensor_.begin);
    if (tensor_.end > data_bytes_) {
      refuse("the data of tensor \"{}\" ends at byte {}, but only {} bytes of data follow the header", name_,
             tensor_.end, data_bytes_);
    }
    const std::optional<int64_t> numel = checked_numel(tensor_.shape);
    uint64_t bits = 0;
    if (!numel || __builtin_mul_overflow(static_cast<uint64_t>(*numel), bits_of(tensor_.dtype), &bits)) {
      refuse("the size of tensor \"{}\", shape {}, overflows", name_, text_of(tensor_.shape));
    }
    if (bits % 8 != 0)
      refuse("tensor \"{}\", {} {}, does not fill whole bytes", name_, name_of(tensor_.dtype), text_of(tensor_.shape));
    if (tensor_.end - tensor_.begin != bits / 8) {
      refuse("tensor \"{}\", {} {}, needs {} bytes, but its data_offsets span {}", name_, name_of(tensor_.dtype),
             text_of(tensor_.shape), bits / 8, tensor_.end - tensor_.begin);
    }
    header_.tensors_.push_back(std::move(tensor_));
  }

  SafetensorsHeader header_;
  const uint64_t data_bytes_;
  const std::string& origin_;
  Place place_ = Place::start;
  std::string name_;          // the tensor being described
  std::string metadata_key_;  // the metadata being described
  StoredTensor tensor_;       // begin and end still relative to the data
  int offsets_seen_ = 0;
  int unknown_depth_ = 0;  // objects and arrays that are open in a value that means nothing
  bool has_metadata_ = false;
  bool has_dtype_ = false, has_shape_ = false, has_offsets_ = false;
};

SafetensorsHeader SafetensorsHeader::parse(std::string_view json, uint64_t file_bytes, const std::string& origin) {
  const uint64_t data_begin = 8 + json.size();
  check_invariant(data_begin <= file_bytes, "a header of {} bytes lies in a file of {}", json.size(), file_bytes);
  SafetensorsHeaderParser parser(data_begin, file_bytes, origin);
  const size_t first = json.find_first_not_of(" \n\r\t");
  if (first == std::string_view::npos || json[first] != '{') parser.refuse("its header does not begin with a brace");
  // The library would take a zero byte for the end of the text and ignore what follows.
  if (json.find('\0') != std::string_view::npos) parser.refuse("its header contains a zero byte");
  nlohmann::json::sax_parse(json, &parser);
  return parser.finish();
}

}  // namespace conclave
