// What tells the weights that an adapter was trained beside from others.
#pragma once

#include <filesystem>
#include <string>

namespace conclave {

// Of the safetensors files of a Hugging Face folder: of their lengths and headers, and of the first and last bytes of
// their data. Quick for a model of any size; "" where there are no such files.
std::string base_fingerprint(const std::filesystem::path& folder);

}  // namespace conclave
