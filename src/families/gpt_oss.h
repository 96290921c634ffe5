#pragma once

#include "families/family.h"

namespace conclave {

extern const Family gpt_oss_family;

}  // namespace conclave
