#include "config/job.h"

#include "config/fields.h"

namespace conclave {

Fields fields_of(Job& job) {
  Fields fields;
  describe(job.run, fields);
  describe(job.model, fields);
  describe(job.train, fields);
  describe(job.adapter, fields);
  describe(job.data, fields);
  describe(job.parallel, fields);
  describe(job.memory, fields);
  describe(job.moe, fields);
  describe(job.precision, fields);
  describe(job.optimizer, fields);
  describe(job.schedule, fields);
  describe(job.checkpoint, fields);
  describe(job.validation, fields);
  describe(job.metrics, fields);
  return fields;
}

}  // namespace conclave
