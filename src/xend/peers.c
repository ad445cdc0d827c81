#include "xend/peers.h"
#include "base/address.h"
#include "base/cleanup.h"
#include "base/printable.h"
#include "base/log.h"
#include "xend/carrier.h"
#include "xend/disk_portrait.h"
#include "xend/objections.h"
#include "xend/store.h"
#include "xend/trust.h"

#include <errno.h>
#include <poll.h>
#include <string.h>

#define ASKED_AT_ONCE 16u
#define ANSWERS_MAX 4u
#define UNHEARD_NAMED 8u /* hosts that a warning names, of those that were not heard */

void peers_remember(struct xend *xend, const char *host, const char *address, unsigned port)
{
	struct error error;

	if (store_put_peer(xend->store, host, address, port, &error) < 0)
		log_error("%s", error.text);
}

void peers_remember_socket(struct xend *xend, int socket, unsigned port)
{
	char address[ADDRESS_SIZE];

	address_of_peer(socket, address);
	if (port && *address)
		peers_remember(xend, "", address, port);
}

static int say_query(struct carrier *carrier, const char *host, unsigned port, const json_t *query,
	bool probe, struct error *error)
{
	return trust_say(carrier,
		json_pack("{s:s, s:s, s:i, s:O, s:b}", "do", "query", "host", host, "port", (int)port,
			"query", query, "probe", probe),
		NULL, 0, error);
}

int peers_query(struct xend *xend, const char *host, unsigned port, json_t *query, int cancel, json_t **reply,
	json_t **line, struct error *error)
{
	_cleanup_carrier_ struct carrier carrier = {0};
	_cleanup_message_ struct message event = {0};
	_cleanup_json_ json_t *asked = query;
	int r = asked ? carrier_start(&carrier, xend, cancel, NULL, error)
		      : error_set(error, ENOMEM, "Out of memory.");

	if (r >= 0)
		r = say_query(&carrier, host, port, asked, line != NULL, error);
	do {
		message_free(&event);
		event = (struct message){0};
		if (r >= 0)
			r = carrier_hear(&carrier, &event, error);
	} while (r >= 0 && (carrier_heard(&event, "connecting") || carrier_heard(&event, "connected")));
	if (r >= 0 && !carrier_heard(&event, "reply"))
		r = error_set(error, EPROTO, "The carrier said something else where 'reply' was due.");
	if (r < 0)
		return r;
	if (line)
		*line = json_incref(json_object_get(event.body, "line"));
	*reply = json_incref(json_object_get(event.body, "reply"));
	return 0;
}

/* ---- asking ---- */

struct asked {
	struct carrier carrier;
	char host[256];
	unsigned port;
	bool open;     /* no answer yet */
	bool reached;  /* it accepted the connection */
	bool heard;    /* it has answered */
	long long end; /* monotonic ms: it has that long for what is due */
};

struct inquiry {
	struct domain *domain; /* referenced */
	struct asked *peers;   /* owned; pointers to them last only until one is added */
	unsigned count, begun; /* known, and asked so far */
	struct error found;    /* code 0: nobody has it */
};

static int add_peer(void *context, const char *host, unsigned port)
{
	struct inquiry *inquiry = context;
	struct asked *more, *asked;

	if (strlen(host) >= sizeof(asked->host))
		return 0;
	more = realloc(inquiry->peers, (inquiry->count + 1) * sizeof(*more));
	if (!more)
		return -ENOMEM;
	inquiry->peers = more;
	asked = &more[inquiry->count++];
	*asked = (struct asked){.port = port};
	snprintf(asked->host, sizeof(asked->host), "%s", host);
	return 0;
}

static const char *mode_word(enum disk_mode mode)
{
	static const char *const words[] = {
		[DISK_READ_ONLY] = "r", [DISK_WRITE] = "w", [DISK_WRITE_SHARED] = "w!"};

	return words[mode];
}

/* Without the lock. */
static json_t *who_has(const struct domain *domain)
{
	const struct guest_config *config = &domain->config;
	const struct xend *xend = domain->xend;
	json_t *disks = json_array();

	for (size_t i = 0; i < config->disk_count; i++) {
		const struct guest_disk *disk = &config->disks[i];

		if (disk->mode != DISK_WRITE_SHARED && *disk->target)
			json_array_append_new(
				disks, json_pack("{s:s, s:s, s:o*}", "target", disk->target, "mode",
					       mode_word(disk->mode), "portrait", disk_portrait(disk)));
	}
	return json_pack("{s:s, s:s, s:s, s:s, s:b, s:o}", "query", "who-has", "asker", xend->self, "name",
		config->name, "uuid", config->uuid, "again", domain->again, "disks", disks);
}

/* What a peer says is shown to a user: only what can be true of one of our guests' names and disks. */
static void take_answer(struct inquiry *inquiry, const struct asked *asked, const json_t *reply)
{
	static const char *const states[] = {"runs", "starts", "arrives", "in doubt"};
	static const char *const sentences[] = {"runs on %s", "is being started on %s", "is arriving on %s",
		"is on %s, in doubt whether it has left"};
	const struct guest_config *config = &inquiry->domain->config;
	const json_t *guest = json_array_get(json_object_get(reply, "guests"), 0);
	const char *name = json_string_value(json_object_get(guest, "name")),
		   *how = json_string_value(json_object_get(guest, "how")),
		   *disk = json_string_value(json_object_get(guest, "disk"));
	json_int_t id = json_integer_value(json_object_get(guest, "id"));
	char where[400] = "";

	if (inquiry->found.code || !name || guest_name_check(name, NULL) < 0 || !how || id < 0 ||
		id > INT32_MAX)
		return;
	for (size_t i = 0; i < ARRAY_SIZE(states); i++)
		if (strcmp(states[i], how) == 0)
			snprintf(where, sizeof(where), sentences[i], asked->host);
	if (!*where)
		return;
	for (size_t i = 0; disk && i < config->disk_count; i++)
		if (strcmp(config->disks[i].target, disk) == 0) {
			error_set(&inquiry->found, EBUSY,
				"Disk %s (%s) of domain '%s' is in use by domain '%s' (ID %d there), which "
				"%s. Two "
				"that write to one disk destroy it; end that domain first, or migrate it "
				"here.",
				disk, config->disks[i].device, config->name, name, (int)id, where);
			return;
		}
	if (!disk)
		error_set(&inquiry->found, strcmp(how, states[0]) == 0 ? EALREADY : EBUSY,
			"Domain '%s' %s already, as '%s' with ID %d there: one guest runs on one host only. "
			"End it there first, or migrate it here.",
			config->name, where, name, (int)id);
}

static void take_event(struct inquiry *inquiry, struct asked *asked)
{
	_cleanup_message_ struct message event = {0};
	struct error error;
	int r = channel_receive(asked->carrier.channel, &event, &error);

	if (r >= 0 && carrier_heard(&event, "connecting")) {
		asked->end = monotonic_ms() + WHO_HAS_REACH_MS;
	} else if (r >= 0 && carrier_heard(&event, "connected")) {
		asked->reached = true;
		asked->end = monotonic_ms() + WHO_HAS_ANSWER_MS;
	} else {
		asked->open = false;
		asked->heard = r >= 0 && carrier_heard(&event, "reply");
		if (asked->heard)
			take_answer(inquiry, asked, json_object_get(event.body, "reply"));
		else if (r >= 0)
			r = channel_error_of(event.body, &error);
		if (r < 0)
			log_warning("%s was not heard about domain '%s': %s", asked->host,
				inquiry->domain->config.name, error.text);
	}
}

/* Whoever has something to say says it. Without the lock. */
static void hear_some(struct inquiry *inquiry, int timeout_ms)
{
	struct pollfd ready[ASKED_AT_ONCE];
	struct asked *who[ASKED_AT_ONCE];
	unsigned count = 0;

	for (unsigned i = 0; i < inquiry->begun && count < ASKED_AT_ONCE; i++)
		if (inquiry->peers[i].open) {
			who[count] = &inquiry->peers[i];
			ready[count] = (struct pollfd){.fd = who[count]->carrier.channel, .events = POLLIN};
			count++;
		}
	if (poll(ready, count, timeout_ms) <= 0)
		return;
	for (unsigned i = 0; i < count; i++)
		if (ready[i].revents)
			take_event(inquiry, who[i]);
}

/* What it has said already counts, however late this side is to hear it. */
static bool has_spoken(const struct asked *asked)
{
	struct pollfd ready = {.fd = asked->carrier.channel, .events = POLLIN};

	return poll(&ready, 1, 0) > 0;
}

/* Gives up who is late; how long the next of the others has, -1 where there is none. */
static int time_left(struct inquiry *inquiry)
{
	long long now = monotonic_ms(), next = -1;

	for (unsigned i = 0; i < inquiry->begun; i++) {
		struct asked *asked = &inquiry->peers[i];

		if (asked->open && asked->end <= now && !has_spoken(asked)) {
			asked->open = false;
			log_warning("%s %s whether it has domain '%s', which starts without its answer.",
				asked->host,
				asked->reached ? "did not say in time"
					       : "could not be reached in time and asked",
				inquiry->domain->config.name);
		}
		if (asked->open && (next < 0 || asked->end < next))
			next = asked->end;
	}
	return next < 0 ? -1 : next > now ? (int)(next - now) : 0;
}

/* Carriers may take a moment to end, and nobody has to wait for that. With the lock, which it lets go of. */
static void end_inquiry(void *argument)
{
	struct inquiry *inquiry = argument;

	for (unsigned i = 0; i < inquiry->begun; i++)
		carrier_end(&inquiry->peers[i].carrier);
	domain_unref(inquiry->domain);
	free(inquiry->peers);
	free(inquiry);
}

/* With the lock. */
static void ask_one(struct inquiry *inquiry, struct asked *asked, const json_t *query)
{
	struct error error;
	int r = carrier_start(&asked->carrier, inquiry->domain->xend, -1, NULL, &error);

	if (r >= 0)
		r = say_query(&asked->carrier, asked->host, asked->port, query, false, &error);
	asked->open = r >= 0;
	asked->end = monotonic_ms() + WHO_HAS_ANSWER_MS;
	if (r < 0)
		log_warning("%s was not asked about domain '%s': %s", asked->host,
			inquiry->domain->config.name, error.text);
}

/* Some at once, and another as soon as one of them has answered or is given up. Lets go of the lock. */
static void ask_all(struct inquiry *inquiry, const json_t *query)
{
	struct xend *xend = inquiry->domain->xend;

	for (;;) {
		unsigned open = 0;
		int left;

		for (unsigned i = 0; i < inquiry->begun; i++) {
			open += inquiry->peers[i].open;
			/* Who has answered is done with; others may take their time, and are ended later. */
			if (inquiry->peers[i].heard)
				carrier_end(&inquiry->peers[i].carrier);
		}
		while (open < ASKED_AT_ONCE && inquiry->begun < inquiry->count && !inquiry->found.code) {
			ask_one(inquiry, &inquiry->peers[inquiry->begun], query);
			open += inquiry->peers[inquiry->begun++].open;
		}
		if (!open || inquiry->found.code || xend->stopping)
			return;
		xend_unlock(xend);
		left = time_left(inquiry);
		if (left >= 0)
			hear_some(inquiry, left);
		xend_lock(xend);
	}
}

/* Hosts that may have the guest for all that is known: whoever starts it is told. */
static void note_unheard(const struct inquiry *inquiry)
{
	char hosts[UNHEARD_NAMED * 260] = "";
	struct domain *domain = inquiry->domain;
	unsigned unheard = 0;
	size_t used = 0;

	for (unsigned i = 0; i < inquiry->count; i++)
		if (!inquiry->peers[i].heard && ++unheard <= UNHEARD_NAMED && used < sizeof(hosts))
			used += (size_t)snprintf(hosts + used, sizeof(hosts) - used, "%s%s",
				unheard > 1 ? ", " : "", inquiry->peers[i].host);
	if (!unheard)
		return;
	json_decref(domain->warnings);
	domain->warnings = json_pack("[o]",
		json_sprintf("Whether another host has domain '%s' or its disks could not be asked of %u of "
			     "%u hosts: %s%s. Two that write to one disk destroy it; xm log says why, and xm "
			     "trust --forget drops a host that is no more.",
			domain->config.name, unheard, inquiry->count, hosts,
			unheard > UNHEARD_NAMED ? " and more" : ""));
	log_warning("%s", json_string_value(json_array_get(domain->warnings, 0)) ?: "Out of memory.");
}

int peers_ask(struct domain *domain, struct error *error)
{
	struct xend *xend = domain->xend;
	_cleanup_json_ json_t *query = NULL;
	struct inquiry *inquiry = calloc(1, sizeof(*inquiry));
	int r = inquiry ? store_each_peer(xend->store, add_peer, inquiry, error)
			: error_set(error, ENOMEM, "Out of memory.");

	if (r < 0 || !inquiry->count) {
		if (inquiry)
			free(inquiry->peers);
		free(inquiry);
		return r == -ENOMEM ? error_set(error, ENOMEM, "Out of memory.") : r;
	}
	inquiry->domain = domain_ref(domain);
	xend_unlock(xend);
	query = who_has(domain);
	xend_lock(xend);
	ask_all(inquiry, query);
	r = inquiry->found.code ? error_set(error, inquiry->found.code, "%s", inquiry->found.text) : 0;
	if (r >= 0 && xend->stopping) /* then not all were awaited */
		r = error_set(error, ECANCELED, "xend is being stopped.");
	if (r >= 0)
		note_unheard(inquiry);
	if (xend_worker(xend, end_inquiry, inquiry, NULL) < 0)
		end_inquiry(inquiry);
	return r;
}

/* ---- answering ---- */

static const char *how_it_is(const struct domain *domain)
{
	if (domain->doubt)
		return "in doubt";
	if (domain->phase == DOMAIN_STARTING)
		return domain->arrived ? "arrives" : "starts";
	return "runs";
}

/* A disk of ours that may be the one in question. */
struct candidate {
	struct guest_disk disk; /* target and device owned */
	const json_t *asked;    /* one of the question's disks, borrowed */
	json_t *guest;          /* what to answer if it is; owned */
	bool same_name;
};

struct candidates {
	struct candidate *list; /* owned */
	size_t count;
};

static json_t *describe_guest(const struct domain *domain, const char *disk)
{
	return json_pack("{s:s, s:s, s:I, s:s, s:s?}", "name", domain->config.name, "uuid",
		domain->config.uuid, "id", (json_int_t)domain->id, "how", how_it_is(domain), "disk", disk);
}

static bool both_only_read(const struct guest_disk *disk, const json_t *asked)
{
	const char *mode = json_string_value(json_object_get(asked, "mode"));

	return disk->mode == DISK_READ_ONLY && mode && strcmp(mode, "r") == 0;
}

static void add_candidate(struct candidates *candidates, const struct domain *domain,
	const struct guest_disk *disk, const json_t *query, const json_t *asked)
{
	const char *name = json_string_value(json_object_get(query, "name")),
		   *target = json_string_value(json_object_get(asked, "target"));
	struct candidate *list;

	if (!target || !json_is_object(json_object_get(asked, "portrait")) || both_only_read(disk, asked))
		return;
	list = realloc(candidates->list, (candidates->count + 1) * sizeof(*list));
	if (!list)
		return;
	candidates->list = list;
	list[candidates->count++] = (struct candidate){
		.disk = {.target = strdup(disk->target), .device = strdup(disk->device), .mode = disk->mode},
		.asked = asked,
		.guest = describe_guest(domain, target),
		.same_name = name && strcmp(name, domain->config.name) == 0};
}

static void free_candidates(struct candidates *candidates)
{
	for (size_t i = 0; i < candidates->count; i++) {
		guest_disk_free(&candidates->list[i].disk);
		json_decref(candidates->list[i].guest);
	}
	free(candidates->list);
}

/* Reads from disks: without the lock. */
static bool is_it(const struct candidate *candidate)
{
	const char *target = json_string_value(json_object_get(candidate->asked, "target"));
	bool same_path = candidate->disk.target && strcmp(candidate->disk.target, target) == 0;
	struct disk_likeness likeness;

	return candidate->disk.target &&
	       disk_compare(&candidate->disk, json_object_get(candidate->asked, "portrait"), same_path,
		       &likeness, NULL) >= 0 &&
	       disk_likely_same(&likeness, same_path, candidate->same_name);
}

/* Of two hosts that are both to start a guest again, the one that waits for its next attempt lets the other
 * have it: before that attempt it asks. */
static bool gives_way(const struct domain *domain, const json_t *query)
{
	const char *uuid = json_string_value(json_object_get(query, "uuid"));

	return domain->pausing && domain->found && json_is_true(json_object_get(query, "again")) && uuid &&
	       strcmp(domain->config.uuid, uuid) == 0;
}

static json_t *answer_who_has(struct xend *xend, const json_t *query)
{
	const char *uuid = json_string_value(json_object_get(query, "uuid")),
		   *asker = json_string_value(json_object_get(query, "asker"));
	const json_t *disks = json_object_get(query, "disks");
	struct candidates candidates __attribute__((cleanup(free_candidates))) = {0};
	json_t *guests = json_array();
	/* An address that was another host's, or leads back here: this host's guests are no news to it. */
	bool myself = asker && strcmp(asker, xend->self) == 0;

	for (struct domain *domain = myself ? NULL : xend->domains; domain; domain = domain->next) {
		if (domain_has_left(domain) || gives_way(domain, query))
			continue;
		if (uuid && strcmp(domain->config.uuid, uuid) == 0)
			json_array_append_new(guests, describe_guest(domain, NULL));
		for (size_t i = 0; i < domain->config.disk_count; i++)
			for (size_t j = 0; j < json_array_size(disks) && j < GUEST_DISKS_MAX; j++)
				add_candidate(&candidates, domain, &domain->config.disks[i], query,
					json_array_get(disks, j));
	}
	xend_unlock(xend);
	for (size_t i = 0; i < candidates.count && json_array_size(guests) < ANSWERS_MAX; i++)
		if (is_it(&candidates.list[i]))
			json_array_append(guests, candidates.list[i].guest);
	xend_lock(xend);
	return json_pack("{s:o}", "guests", guests);
}

static json_t *answer_objections(struct xend *xend, const json_t *query)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	const json_t *domain = json_object_get(query, "domain");
	struct error error;
	bool paused;

	if (domain_unpack(domain, &config, &paused, &error) < 0)
		return json_pack("{s:[o]}", "objections", printable_sentence(error.text));
	return json_pack("{s:o}", "objections", objections_to(xend, &config, domain));
}

json_t *peers_answer(struct xend *xend, const json_t *query)
{
	static const struct {
		const char *name;
		json_t *(*answer)(struct xend *xend, const json_t *query);
	} questions[] = {{"who-has", answer_who_has}, {"objections", answer_objections}};
	const char *name = json_string_value(json_object_get(query, "query"));

	for (size_t i = 0; name && i < ARRAY_SIZE(questions); i++)
		if (strcmp(questions[i].name, name) == 0)
			return questions[i].answer(xend, query);
	return json_object();
}
