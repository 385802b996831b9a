// The state of the pretend device: streams, a log of what the program asks of it, and armed failures.
//
// The functions with C linkage are for tests, which look them up in the opened library. All state is of the process.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

extern "C" {

// Starts a new log, or ends it. Nothing is logged before the first start.
void pretend_log(bool on);
// Returns the lines of the log since the last call. Valid until the next call.
const char *pretend_take_log();

// Makes the `nth` allocation of device memory from now on fail, once; 0 cancels.
void pretend_fail_allocation(uint64_t nth);
// Returns the number of allocations of device memory so far.
uint64_t pretend_allocations();
// Limits the memory of each device to `bytes`; 0 is no limit.
void pretend_set_limit(uint64_t bytes);
// Returns bytes of a device: what 0 in use, 1 in use or cached, 2 the peak of use; 3 pinned host memory in use.
uint64_t pretend_memory(int device, int what);

// Makes the `nth` operator (or, with `allocation`, the `nth` allocation) from now on fail with `text`.
// `counts` says whether the allocator counts it as out of memory. After a `fatal` failure every call fails.
void pretend_arm(bool allocation, uint64_t nth, const char *text, bool counts, bool fatal);

}  // extern "C"

namespace pretend {

// Writes a line to the log, unless the calling thread is inside an operator that the CPU computes.
void say(const std::string &line);

// Marks that the CPU computes an operator of this thread: its own allocations, copies and operators are not logged.
struct Inside {
  Inside();
  ~Inside();
  static bool now();
};

// Number of devices (PRETEND_DEVICES, by default 1).
int device_count();

// Throws the failure that is armed for this operator; throws always after a fatal failure.
void check_operator();
// The same for an allocation. Returns true if it must fail as out of memory.
bool check_allocation();
// Throws after a fatal failure.
void check_alive();
// Ends the process after a fatal failure, as an exception from a destructor does.
void check_alive_in_destructor(const char *what);

uint64_t memory_limit();
// How often the allocator of a device was out of memory.
int64_t out_of_memory_count();
void count_out_of_memory();

// ---- Order of work. A stream executes its work in order; another stream, or the host, knows of it only after a wait.

using StreamKey = int64_t;
StreamKey stream_key(int device, int64_t stream);

// Work was queued on a stream. Returns its number.
uint64_t queue_work(StreamKey stream);
// Returns whether a stream, or the host, knows that the work was done.
bool knows(StreamKey stream, StreamKey by, uint64_t work);
bool host_knows(StreamKey by, uint64_t work);

struct Event;
Event *record_event(Event *event, StreamKey stream);
// The stream waits for the event.
void stream_waits(StreamKey stream, const Event *event);
// The host waits for the event, for a stream or for all streams of a device. Logs whether the device had more to do.
void host_waits_event(const Event *event);
void host_waits_stream(StreamKey stream, const char *why);
void host_waits_device(int device);
bool event_done(const Event *event);
void destroy_event(Event *event);

// ---- Copies from and to pinned memory that the program does not wait for.

// The source must keep its contents until the host knows that the copy is done.
void expect_unchanged(const void *source, size_t bytes, StreamKey stream, uint64_t work);
// The target gets its contents when the host knows that the copy is done; until then it holds 0xFF.
void deliver_later(void *target, std::string contents, StreamKey stream, uint64_t work);

}  // namespace pretend
