#pragma once

#include "families/family.h"

namespace conclave {

extern const Family mistral_family;

}  // namespace conclave
