#include "vmm/control_verbs.h"
#include "base/cleanup.h"
#include "vmm/cpuid.h"
#include "vmm/dev/power.h"
#include "vmm/dirty_log.h"
#include "vmm/own_memory.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

#define STATE_MAX (256ull << 20) /* device state that load-state takes */

static void set_new(json_t *object, const char *key, json_t *value)
{
	json_object_set_new(object, key, value);
}

void control_add_state(const struct machine *machine, json_t *to)
{
	const char *reason = machine_stop_name(machine);

	set_new(to, "state", json_string(machine_state_name(machine)));
	set_new(to, "filling", json_boolean(machine->faults >= 0));
	set_new(to, "shared", json_boolean(machine->memory.shared));
	set_new(to, "waits", json_string(machine->hold.why));
	if (reason) {
		set_new(to, "reason", json_string(reason));
		set_new(to, "detail", json_string(machine->detail));
	}
}

static void reply_fd(struct reply *reply, const char *key, int fd)
{
	set_new(reply->body, key, json_pack("{s:i}", "fd", (int)reply->fd_count));
	reply->fds[reply->fd_count++] = fd;
}

static int do_create(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	_cleanup_machine_config_ struct machine_config config;
	int r = machine_config_parse(&config, request, json_object_get(request->body, "machine"), error);

	(void)reply;
	return r < 0 ? r : machine_create(connection->control->machine, &config, error);
}

static int do_status(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	const struct machine *machine = connection->control->machine;
	json_t *vcpus = json_array();
	uint64_t total = 0;

	(void)request, (void)error;
	control_add_state(machine, reply->body);
	for (uint32_t i = 0; i < machine->vcpus.count; i++) {
		const struct vcpu *vcpu = &machine->vcpus.vcpu[i];
		uint64_t spent = vcpu_cpu_time(vcpu);

		total += spent;
		json_array_append_new(
			vcpus, json_pack("{s:i, s:I, s:b}", "id", (int)i, "cpu_time_ns", (json_int_t)spent,
				       "halted", vcpu->parked || vcpu_halted(vcpu)));
	}
	set_new(reply->body, "cpu_time_ns", json_integer((json_int_t)total));
	set_new(reply->body, "vcpus", vcpus);
	set_new(reply->body, "throttle", json_integer((json_int_t)machine->throttle.percent));
	if (machine->config.described)
		json_object_set(reply->body, "machine", machine->config.described);
	return 0;
}

static int do_resume(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	bool announce = json_is_true(json_object_get(request->body, "announce"));

	(void)reply;
	return machine_resume(connection->control->machine, announce, error);
}

static int do_clock(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	const json_t *offset = json_object_get(request->body, "realtime_offset_ns");

	(void)reply;
	if (!json_is_integer(offset))
		return error_set(error, EINVAL, "'clock' needs 'realtime_offset_ns': nanoseconds.");
	return machine_translate_clock(connection->control->machine, json_integer_value(offset), error);
}

static int do_pause(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	int r;

	(void)request;
	connection->waiting = true;
	reply->later = true;
	r = machine_pause(connection->control->machine, error);
	if (r < 0)
		connection->waiting = false;
	return r;
}

static int do_memory(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	struct machine *machine = connection->control->machine;
	const struct memory *memory = &machine->memory;
	json_t *regions = json_array();

	(void)request, (void)error;
	reply_fd(reply, "ram", memory->fd);
	set_new(reply->body, "shared", json_boolean(memory->shared));
	set_new(reply->body, "size", json_integer((json_int_t)memory->size));
	set_new(reply->body, "state_size", json_integer((json_int_t)machine_state_size(machine)));
	for (unsigned i = 0; i < memory->region_count; i++)
		json_array_append_new(
			regions, json_pack("{s:I, s:I, s:I}", "gpa", (json_int_t)memory->regions[i].gpa,
					 "size", (json_int_t)memory->regions[i].size, "offset",
					 (json_int_t)memory->regions[i].offset));
	set_new(reply->body, "regions", regions);
	return 0;
}

static int do_faults(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	const struct machine *machine = connection->control->machine;

	(void)request;
	if (machine->faults < 0)
		return error_set(error, EOPNOTSUPP, "This guest does not wait for memory.");
	reply_fd(reply, "faults", machine->faults);
	set_new(reply->body, "base", json_integer((json_int_t)(uintptr_t)machine->memory.base));
	return 0;
}

static int do_filled(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	(void)request, (void)reply, (void)error;
	machine_filled(connection->control->machine);
	return 0;
}

static int do_own_memory(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	struct machine *machine = connection->control->machine;
	_cleanup_close_ int ram = message_take_fd(request, request->body, "ram", NULL);
	_cleanup_close_ int pagemap = message_take_fd(request, request->body, "pagemap", NULL);
	int r;

	(void)reply;
	if (ram < 0 || pagemap < 0)
		return error_set(error, EINVAL, "'own-memory' needs 'ram' and 'pagemap', descriptors.");
	if (machine->state != MACHINE_PAUSED || machine->quieting || machine->faults >= 0 ||
		!machine->memory.shared)
		return error_set(error, EBUSY,
			"Only a paused clone whose memory has come can be given memory of its own.");
	r = memory_own(&machine->memory, ram, pagemap, error);
	if (r == 0)
		ram = -1; /* the machine's now */
	return r;
}

/*
 * The log belongs to whoever turned it on last: two that read it would each miss what the other has taken,
 * and one that gives up late would turn off what its successor relies on. Who never had it (xend) may turn it
 * off.
 */
static int do_track(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	struct machine *machine = connection->control->machine;
	const json_t *on = json_object_get(request->body, "on");
	int r;

	if (!json_is_boolean(on))
		return error_set(error, EINVAL, "'track' needs 'on': true or false.");
	if (connection->ousted && !json_is_true(on))
		return 0;
	for (struct connection *other = connection->control->connections; other; other = other->next) {
		other->ousted |= other->tracks;
		other->tracks = false;
	}
	r = dirty_log_set(machine, json_is_true(on), error);
	if (r == 0 && json_is_true(on)) {
		connection->tracks = true;
		connection->ousted = false;
		reply_fd(reply, "bitmap", machine->bitmap_fd);
	}
	return r;
}

/* For as long as this connection lasts: whoever slows the guest may die at any moment. */
static int do_throttle(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	struct machine *machine = connection->control->machine;
	const json_t *percent = json_object_get(request->body, "percent");
	json_int_t value = json_integer_value(percent);
	int r;

	(void)reply;
	if (!json_is_integer(percent) || value < 0 || value > (json_int_t)THROTTLE_MOST)
		return error_set(
			error, EINVAL, "'throttle' needs 'percent': a number from 0 to %u.", THROTTLE_MOST);
	r = throttle_set(&machine->throttle, machine->loop, &machine->vcpus, (unsigned)value, error);
	for (struct connection *other = connection->control->connections; other && r == 0;
		other = other->next)
		other->slows = other == connection && value > 0;
	return r;
}

static int do_dirty(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	uint64_t pages;
	int r;

	(void)request;
	if (!connection->tracks)
		return error_set(error, EBUSY, "The guest's written pages are not being tracked for you.");
	r = dirty_log_take(connection->control->machine, &pages, error);
	if (r == 0)
		set_new(reply->body, "pages", json_integer((json_int_t)pages));
	return r;
}

static int write_all(int fd, const void *data, size_t size)
{
	const uint8_t *at = data;

	while (size) {
		ssize_t done = write(fd, at, size);

		if (done < 0 && errno != EINTR)
			return -errno;
		at += done > 0 ? done : 0;
		size -= done > 0 ? (size_t)done : 0;
	}
	return 0;
}

static int do_flush(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	bool begin = json_is_true(json_object_get(request->body, "begin"));
	int r = machine_flush(connection->control->machine, begin, error);

	set_new(reply->body, "done", json_boolean(r == 0));
	return r == -EINPROGRESS ? 0 : r;
}

static int do_save(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	_cleanup_buffer_ struct buffer state = {0};
	int fd, r = machine_save(connection->control->machine, &state, error);

	(void)request;
	if (r < 0)
		return r;
	fd = memfd_create("device-state", MFD_CLOEXEC);
	r = fd < 0 ? -errno : write_all(fd, state.data, state.size);
	if (r < 0) {
		cleanup_close(&fd);
		return error_set(error, -r, "Unable to hand over the guest's state: %s.", strerror(-r));
	}
	reply_fd(reply, "state", fd);
	set_new(reply->body, "size", json_integer((json_int_t)state.size));
	return 0;
}

/* Read, not mapped: whoever gave the file could cut it off. */
static int do_load(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	json_int_t size = json_integer_value(json_object_get(request->body, "size"));
	_cleanup_close_ int fd = message_take_fd(request, request->body, "state", error);
	_cleanup_buffer_ struct buffer state = {0};
	struct cursor records;
	size_t at = 0;
	void *room;

	(void)reply;
	if (fd < 0 || size <= 0 || size > (json_int_t)STATE_MAX)
		return error_set(error, EINVAL, "'load-state' needs 'state', a descriptor, and its 'size'.");
	room = buffer_extend(&state, (size_t)size);
	if (!room)
		return error_set(error, ENOMEM, "Out of memory for a state of %lld bytes.", (long long)size);
	while (at < state.size) {
		ssize_t got = pread(fd, state.data + at, state.size - at, (off_t)at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			return error_set(error, EINVAL, "The guest's state is cut short at %zu of %zu bytes.",
				at, state.size);
		at += (size_t)got;
	}
	records = cursor_over(state.data, state.size);
	return machine_load(connection->control->machine, &records, error);
}

static int do_console(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	bool history = json_is_true(json_object_get(request->body, "history"));
	_cleanup_close_ int stream = message_take_fd(request, request->body, "stream", error);
	int r;

	(void)reply;
	if (stream < 0)
		return error_set(error, EINVAL, "'console' needs 'stream', a descriptor.");
	r = console_attach(connection->control->machine->console, stream, history, error);
	if (r == 0)
		stream = -1;
	return r;
}

static int do_features(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	const struct machine *machine = connection->control->machine;
	const struct kvm_cpuid2 *cpuid = machine->vcpus.vcpu[0].cpuid;
	struct processor_view seen = {.capabilities = machine->capabilities};

	(void)request;
	if (!cpuid)
		return error_set(error, EBUSY, "The guest's state has not come yet.");
	seen.entries = cpuid->entries;
	seen.count = cpuid->nent;
	set_new(reply->body, "features", cpuid_features(&seen));
	set_new(reply->body, "needs", cpuid_needs(&seen));
	set_new(reply->body, "tsc_khz", json_integer((json_int_t)machine->tsc_khz));
	return 0;
}

static int do_power_button(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	struct machine *machine = connection->control->machine;

	(void)request, (void)reply;
	if (machine->state == MACHINE_SHUTDOWN)
		return error_set(error, ESHUTDOWN, "The guest has shut down already.");
	power_press_button(machine->power);
	return 0;
}

static int do_subscribe(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	(void)request, (void)reply, (void)error;
	connection->subscribed = true;
	return 0;
}

static int do_quit(
	struct connection *connection, struct message *request, struct reply *reply, struct error *error)
{
	(void)request, (void)reply, (void)error;
	machine_quit(connection->control->machine);
	return 0;
}

static const struct verb verbs[] = {
	{"create", do_create, false, false},
	{"status", do_status, false, false},
	{"resume", do_resume, true, false},
	{"clock", do_clock, true, false},
	{"pause", do_pause, true, false},
	{"memory", do_memory, true, false},
	{"faults", do_faults, true, false},
	{"filled", do_filled, true, false},
	{"own-memory", do_own_memory, true, false},
	{"track", do_track, true, false},
	{"dirty", do_dirty, true, false},
	{"throttle", do_throttle, true, false},
	{"flush", do_flush, true, false},
	{"save-state", do_save, true, true},
	{"load-state", do_load, true, false},
	{"console", do_console, true, false},
	{"features", do_features, true, false},
	{"power-button", do_power_button, true, false},
	{"subscribe", do_subscribe, false, false},
	{"quit", do_quit, false, false},
};

const struct verb *control_find_verb(const char *name)
{
	for (size_t i = 0; name && i < ARRAY_SIZE(verbs); i++)
		if (strcmp(verbs[i].name, name) == 0)
			return &verbs[i];
	return NULL;
}
