#include "control.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <stdexcept>
#include <vector>

namespace pretend {
void throw_torch_error(const std::string &text);  // In device.cpp, which knows libtorch.

namespace {

// One lock for everything here: the pretend device need not be fast.
std::recursive_mutex lock;
using Guard = std::lock_guard<std::recursive_mutex>;

bool logging = false;
std::string lines;
std::string taken;
thread_local int inside = 0;

struct Armed {
  bool allocation;
  uint64_t left;
  std::string text;
  bool counts;
  bool fatal;
};
std::vector<Armed> armed;
std::string dead;  // The text of the fatal failure.
uint64_t fail_in = 0;
uint64_t allocations = 0;
uint64_t limit = 0;
int64_t ooms = 0;

// The armed failure that is due now, if any.
void check_armed(bool allocation) {
  for (auto next = armed.begin(); next != armed.end(); ++next) {
    if (next->allocation != allocation || --next->left > 0) continue;
    const Armed due = *next;
    armed.erase(next);
    if (due.counts) ++ooms;
    if (due.fatal) dead = due.text;
    say("armed failure: " + due.text);
    throw_torch_error(due.text);
  }
}

// What a stream or the host knows: of each stream the number of the last work that is done.
using Clock = std::map<StreamKey, uint64_t>;
void learn(Clock &clock, const Clock &other) {
  for (const auto &[stream, work] : other) clock[stream] = std::max(clock[stream], work);
}
struct Stream {
  uint64_t queued = 0;
  Clock clock;
};
std::map<StreamKey, Stream> streams;
Clock host;

struct Transfer {
  StreamKey stream;
  uint64_t work;
  std::function<void()> done;
};
std::vector<Transfer> transfers;

void host_learns(const Clock &clock) {
  learn(host, clock);
  std::vector<Transfer> open;
  std::vector<Transfer> ready;
  for (auto &transfer : transfers) {
    (host[transfer.stream] >= transfer.work ? ready : open).push_back(std::move(transfer));
  }
  transfers = std::move(open);
  for (const auto &transfer : ready) transfer.done();
}

Clock everything_on(StreamKey key) {
  Stream &stream = streams[key];
  Clock clock = stream.clock;
  clock[key] = stream.queued;
  return clock;
}

uint64_t hash(const void *data, size_t bytes) {  // FNV-1a
  uint64_t value = 1469598103934665603u;
  const auto *byte = static_cast<const unsigned char *>(data);
  for (size_t i = 0; i < bytes; ++i) value = (value ^ byte[i]) * 1099511628211u;
  return value;
}

}  // namespace

struct Event {
  StreamKey stream = 0;
  uint64_t work = 0;
  Clock clock;
};

void say(const std::string &line) {
  Guard guard(lock);
  if (logging && inside == 0) lines += line + "\n";
}

Inside::Inside() { ++inside; }
Inside::~Inside() { --inside; }
bool Inside::now() { return inside > 0; }

int device_count() {
  const char *text = std::getenv("PRETEND_DEVICES");
  return text != nullptr ? std::atoi(text) : 1;
}

void check_alive() {
  Guard guard(lock);
  if (!dead.empty()) throw_torch_error(dead);
}

void check_alive_in_destructor(const char *what) {
  Guard guard(lock);
  if (dead.empty()) return;
  std::fprintf(stderr, "pretend: %s after a fatal error: %s\n", what, dead.c_str());
  std::terminate();
}

void check_operator() {
  Guard guard(lock);
  if (inside > 0) return;
  check_alive();
  check_armed(false);
}

bool check_allocation() {
  Guard guard(lock);
  if (inside == 0) check_alive();
  ++allocations;
  check_armed(true);
  if (fail_in > 0 && --fail_in == 0) {
    ++ooms;
    return true;
  }
  return false;
}

uint64_t memory_limit() {
  Guard guard(lock);
  return limit;
}
int64_t out_of_memory_count() {
  Guard guard(lock);
  return ooms;
}
void count_out_of_memory() {
  Guard guard(lock);
  ++ooms;
}

StreamKey stream_key(int device, int64_t stream) { return (static_cast<int64_t>(device) << 32) | stream; }

uint64_t queue_work(StreamKey key) {
  Guard guard(lock);
  Stream &stream = streams[key];
  learn(stream.clock, host);  // What the host has waited for was done before this is queued.
  return ++stream.queued;
}

bool knows(StreamKey key, StreamKey by, uint64_t work) {
  Guard guard(lock);
  return key == by || streams[key].clock[by] >= work || host[by] >= work;
}

bool host_knows(StreamKey by, uint64_t work) {
  Guard guard(lock);
  return host[by] >= work;
}

Event *record_event(Event *event, StreamKey stream) {
  Guard guard(lock);
  if (event == nullptr) event = new Event;
  event->stream = stream;
  event->work = streams[stream].queued;
  event->clock = everything_on(stream);
  return event;
}

void stream_waits(StreamKey stream, const Event *event) {
  Guard guard(lock);
  learn(streams[stream].clock, event->clock);
}

void host_waits_event(const Event *event) {
  Guard guard(lock);
  if (host[event->stream] < event->work) {
    const uint64_t behind = streams[event->stream].queued - event->work;
    say(behind > 0 ? "pace event, " + std::to_string(behind) + " queued behind" : "wait event");
  }
  host_learns(event->clock);
}

void host_waits_stream(StreamKey stream, const char *why) {
  Guard guard(lock);
  say(std::string("wait ") + why);
  host_learns(everything_on(stream));
}

void host_waits_device(int device) {
  Guard guard(lock);
  say("wait device");
  for (const auto &[key, stream] : streams) {
    if (key >> 32 == device) host_learns(everything_on(key));
  }
}

bool event_done(const Event *event) {
  Guard guard(lock);
  return host[event->stream] >= event->work;
}

void destroy_event(Event *event) { delete event; }

void expect_unchanged(const void *source, size_t bytes, StreamKey stream, uint64_t work) {
  Guard guard(lock);
  const uint64_t before = hash(source, bytes);
  transfers.push_back({stream, work, [=] {
                         if (hash(source, bytes) != before) say("RACE the host overwrote pinned memory in a copy");
                       }});
}

void deliver_later(void *target, std::string contents, StreamKey stream, uint64_t work) {
  Guard guard(lock);
  std::memset(target, 0xff, contents.size());
  transfers.push_back({stream, work, [target, contents = std::move(contents)] {
                         std::memcpy(target, contents.data(), contents.size());
                       }});
}

}  // namespace pretend

using namespace pretend;

void pretend_log(bool on) {
  Guard guard(lock);
  logging = on;
  lines.clear();
}

const char *pretend_take_log() {
  Guard guard(lock);
  taken = std::move(lines);
  lines.clear();
  return taken.c_str();
}

void pretend_fail_allocation(uint64_t nth) {
  Guard guard(lock);
  fail_in = nth;
}

uint64_t pretend_allocations() {
  Guard guard(lock);
  return allocations;
}

void pretend_set_limit(uint64_t bytes) {
  Guard guard(lock);
  limit = bytes;
}

void pretend_arm(bool allocation, uint64_t nth, const char *text, bool counts, bool fatal) {
  Guard guard(lock);
  armed.push_back({allocation, nth, text, counts, fatal});
}
