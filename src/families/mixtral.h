#pragma once

#include "families/family.h"

namespace conclave {

extern const Family mixtral_family;

}  // namespace conclave
