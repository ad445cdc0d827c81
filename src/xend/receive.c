#include "xend/jobs.h"
#include "base/cleanup.h"
#include "base/printable.h"
#include "base/log.h"
#include "xend/carrier.h"
#include "xend/guest.h"
#include "xend/guest_disks.h"
#include "xend/handover.h"
#include "xend/lifecycle.h"
#include "xend/trust.h"
#include "xend/objections.h"
#include "xend/peers.h"
#include "xend/process.h"

#include <errno.h>
#include <string.h>

/* The destination's side of one migration. */
struct receiving {
	struct xend *xend;
	struct carrier carrier;
	struct guest_memory_user memory_user;
	bool accepted; /* the source has been told to send the memory */
	int cancel;
	char ticket[37], peer[256];
	struct domain *domain; /* NULL before the offer was accepted; referenced */
	bool owned;
};

/* A member that must be a text of a sane length. */
static int take_text(const json_t *body, const char *key, char *to, size_t size, struct error *error)
{
	const char *text = json_string_value(json_object_get(body, key));

	if (!text || strlen(text) >= size)
		return error_set(error, EPROTO, "The carrier's message has no usable '%s'.", key);
	snprintf(to, size, "%s", text);
	return 0;
}

static int answer_question(struct receiving *receiving, const struct message *question, struct error *error)
{
	struct message event;
	const char *state;
	int r = take_text(question->body, "ticket", receiving->ticket, sizeof(receiving->ticket), error);

	if (r < 0)
		return r;
	state = handover_answer(receiving->xend, receiving->ticket, error);
	if (!state)
		return -error->code;
	log_info("%s asks about the hand-over %s: %s.", receiving->peer, receiving->ticket, state);
	r = carrier_say(
		&receiving->carrier, json_pack("{s:s, s:s}", "do", "answer", "state", state), NULL, 0, error);
	if (r >= 0)
		r = carrier_expect(&receiving->carrier, "done", &event, error);
	if (r >= 0)
		message_free(&event);
	return r;
}

static int answer_query(struct receiving *receiving, const struct message *question, struct error *error)
{
	const json_t *query = json_object_get(question->body, "query");
	struct message done;
	int r = carrier_say(&receiving->carrier,
		json_pack("{s:s, s:o}", "do", "reply", "reply", peers_answer(receiving->xend, query)), NULL,
		0, error);

	if (r >= 0)
		r = carrier_expect(&receiving->carrier, "done", &done, error);
	if (r >= 0)
		message_free(&done);
	return r;
}

/* Memory of a guest that another carrier receives: that one goes on with the connection. */
static int join(const struct visitor *visitor, const struct message *event, struct error *error)
{
	char ticket[37];
	int r = take_text(event->body, "ticket", ticket, sizeof(ticket), error);

	return r < 0 ? r
		     : relocation_join(visitor, ticket,
			       (int)json_integer_value(json_object_get(event->body, "stream")), error);
}

/* Checks and reserves everything: after this the guest fits. What speaks against it is added to *objections.
 */
static int admit(
	struct receiving *receiving, const struct message *offer, json_t *objections, struct error *error)
{
	const json_t *description = json_object_get(offer->body, "domain");
	_cleanup_guest_config_ struct guest_config config = {0};
	_cleanup_json_ json_t *found = NULL;
	char uuid[37];
	bool paused;
	int r = take_text(offer->body, "ticket", receiving->ticket, sizeof(receiving->ticket), error);

	if (r >= 0)
		r = domain_unpack(description, &config, &paused, error);
	if (r < 0)
		return r;
	found = objections_to(receiving->xend, &config, description);
	json_array_extend(objections, found);
	if (json_array_size(found))
		return error_set(error, EPERM, "%zu objections to domain '%s', the first: %s",
			json_array_size(found), config.name, json_string_value(json_array_get(found, 0)));
	snprintf(uuid, sizeof(uuid), "%s", config.uuid);
	r = lifecycle_expect(receiving->xend, &config, paused, GUEST_RECEIVE, NULL, &receiving->memory_user,
		receiving->cancel, &receiving->domain, error);
	if (r >= 0)
		domain_want_restart(receiving->domain, domain_packed_restart(description));
	return r < 0 ? r : handover_receiving(receiving->xend, receiving->ticket, uuid, error);
}

/* All is reserved, and the guest's process lives: its memory can come while it builds the machine. */
static int begin_memory(struct guest_memory_user *memory_user, int ram, struct error *error)
{
	struct receiving *receiving = CONTAINER_OF(memory_user, struct receiving, memory_user);

	receiving->accepted = true;
	return carrier_say(&receiving->carrier, json_pack("{s:s, s:{s:i}}", "do", "accept", "ram", "fd", 0),
		&ram, 1, error);
}

/* Has the carrier tell the peer why there will be no guest here. */
static void refuse(struct receiving *receiving, json_t *objections, const struct error *why)
{
	struct message rest;
	json_t *words = receiving->accepted
				? json_pack("{s:s, s:o}", "do", "abort", "why", printable_sentence(why->text))
				: json_pack("{s:s, s:O}", "do", "refuse", "why", objections);

	carrier_say(&receiving->carrier, words, NULL, 0, NULL);
	/* The carrier's `failed` says the same; waiting for it lets the words arrive. */
	while (carrier_hear(&receiving->carrier, &rest, NULL) >= 0)
		message_free(&rest);
}

static int accept_offer(struct receiving *receiving, const struct message *offer, struct error *error)
{
	_cleanup_json_ json_t *objections = json_array();
	int r = admit(receiving, offer, objections, error);

	if (r >= 0)
		return r;
	if (!json_array_size(objections))
		json_array_append_new(objections, printable_sentence(error->text));
	refuse(receiving, objections, error);
	return r;
}

/* The carrier asks for the guest when the first of its memory is there. */
static int show_guest(struct receiving *receiving, struct error *error)
{
	_cleanup_message_ struct message asked = {0};
	_cleanup_close_ int guest = -1;
	int r = carrier_expect(&receiving->carrier, "guest", &asked, error);

	if (r >= 0)
		r = guest = guest_connect(receiving->domain, error);
	return r < 0 ? r
		     : carrier_say(&receiving->carrier,
			       json_pack("{s:s, s:{s:i}}", "do", "guest", "guest", "fd", 0), &guest, 1,
			       error);
}

/* From the accepted offer to the record that the guest is ours. */
static int take_over(struct receiving *receiving, struct error *error)
{
	struct carrier *carrier = &receiving->carrier;
	_cleanup_message_ struct message received = {0}, commit = {0};
	int r = show_guest(receiving, error);

	if (r >= 0)
		r = carrier_expect(carrier, "received", &received, error);
	if (r >= 0)
		r = handover_received(
			receiving->xend, receiving->ticket, receiving->domain->config.uuid, error);
	if (r >= 0)
		r = carrier_say(carrier, json_pack("{s:s}", "do", "received"), NULL, 0, error);
	if (r >= 0)
		r = carrier_expect(carrier, "commit", &commit, error);
	/* Who has died since RECEIVED is not taken over: the source's guest is whole yet. */
	if (r >= 0 && process_wait_if_dying(receiving->domain->process, receiving->domain->pid, 0, NULL) >= 0)
		r = error_set(error, ECHILD, "The guest's process has ended.");
	if (r >= 0)
		r = handover_own(receiving->domain, receiving->ticket, error);
	if (r < 0)
		return r;
	receiving->owned = true;
	carrier->cancel = -1;
	return 0;
}

/* Tells the peer, which then ends its guest. */
static void finish(struct receiving *receiving)
{
	_cleanup_message_ struct message done = {0};
	struct error error;
	int r;

	r = carrier_say(&receiving->carrier,
		json_pack("{s:s, s:I}", "do", "running", "id", (json_int_t)receiving->domain->id), NULL, 0,
		&error);
	if (r >= 0)
		r = carrier_expect(&receiving->carrier, "done", &done, &error);
	if (r < 0) /* the guest is ours all the same; the peer will ask */
		log_warning("Domain '%s': %s was not told that it runs here: %s",
			receiving->domain->config.name, receiving->peer, error.text);
}

static void remember_source(struct receiving *receiving, int socket, const json_t *domain)
{
	json_int_t port = json_integer_value(json_object_get(domain, "relocation_port"));

	if (port > 0 && port < 65536)
		peers_remember_socket(receiving->xend, socket, (unsigned)port);
}

/* What the peer wants, after xend has found out, where that is needed, whether it is whom its certificate is
 * for. */
static int hear_wish(struct receiving *receiving, struct message *wish, struct error *error)
{
	struct carrier *carrier = &receiving->carrier;
	_cleanup_message_ struct message asked = {0};
	struct message rest;
	int r = carrier_hear(carrier, wish, error);

	if (r < 0 || !carrier_heard(wish, "confirm"))
		return r;
	asked = *wish;
	*wish = (struct message){0};
	r = trust_confirm(carrier->xend, json_object_get(asked.body, "names"),
		json_string_value(json_object_get(asked.body, "address")) ?: "", error);
	if (r >= 0) {
		r = carrier_say(carrier, json_pack("{s:s}", "do", "confirmed"), NULL, 0, error);
		return r < 0 ? r : carrier_hear(carrier, wish, error);
	}
	carrier_say(carrier, json_pack("{s:s, s:o}", "do", "abort", "why", printable_sentence(error->text)),
		NULL, 0, NULL);
	while (carrier_hear(carrier, &rest, NULL) >= 0)
		message_free(&rest);
	return r;
}

static int receive(struct receiving *receiving, struct visitor *visitor, struct error *error)
{
	struct xend *xend = receiving->xend;
	_cleanup_message_ struct message first = {0};
	_cleanup_json_ json_t *allow = json_array();
	_cleanup_close_ int joins = -1;
	int r;

	for (size_t i = 0; i < xend->config.allow_count; i++)
		json_array_append_new(allow, json_string(xend->config.allow[i]));
	r = relocation_expect_joins(visitor, &joins, error);
	if (r >= 0)
		r = carrier_start(&receiving->carrier, xend, receiving->cancel, NULL, error);
	if (r >= 0)
		r = trust_say(&receiving->carrier,
			json_pack("{s:s, s:{s:i}, s:{s:i}, s:I, s:O}", "do", "receive", "socket", "fd", 0,
				"joins", "fd", 1, "connections",
				(json_int_t)xend->config.relocation_connections, "allow", allow),
			(const int[]){visitor->socket, joins}, 2, error);
	cleanup_close(&joins); /* the carrier's alone: what is sent to one that has ended fails */
	joins = -1;
	if (r >= 0)
		r = hear_wish(receiving, &first, error);
	if (r >= 0)
		r = take_text(first.body, "peer", receiving->peer, sizeof(receiving->peer), error);
	if (r < 0)
		return r;
	if (carrier_heard(
		    &first, "join")) /* which anybody may say: it has yet to show that it is who it says */
		return join(visitor, &first, error);
	relocation_known(visitor);
	if (carrier_heard(&first, "ask"))
		return answer_question(receiving, &first, error);
	if (carrier_heard(&first, "query"))
		return answer_query(receiving, &first, error);
	if (!carrier_heard(&first, "offer"))
		return error_set(error, EPROTO, "The carrier said something else where 'offer' was due.");
	snprintf(visitor->ticket, sizeof(visitor->ticket), "%s",
		json_string_value(json_object_get(first.body, "ticket")) ?: "");
	r = accept_offer(receiving, &first, error);
	if (r >= 0)
		r = take_over(receiving, error);
	if (r < 0)
		return r;
	r = lifecycle_arrived(receiving->domain, error);
	if (r >= 0) {
		log_info("Domain '%s' has arrived from %s with ID %u.", receiving->domain->config.name,
			receiving->peer, receiving->domain->id);
		remember_source(receiving, visitor->socket, json_object_get(first.body, "domain"));
		finish(receiving);
	} else {
		domain_end_job(
			receiving->domain); /* it is ours, and stands still until the user does something */
	}
	/* The peer ends its guest, or asks first; then the disks' locks are free to be ours. */
	carrier_end(&receiving->carrier);
	guest_lock_disks(receiving->domain);
	return r;
}

void job_receive(struct visitor *visitor)
{
	struct receiving receiving = {
		.xend = visitor->xend, .cancel = visitor->cancel, .memory_user.ready = begin_memory};
	struct error error;
	int r = receive(&receiving, visitor, &error);

	if (r < 0 && !visitor->closed) /* which has been logged */
		(visitor->known ? log_line : log_seldom)(LOG_WARNING_, "Relocation from %s: %s",
			*receiving.peer ? receiving.peer : visitor->address, error.text);
	if (r < 0 && receiving.domain && !receiving.owned) {
		handover_refuse(visitor->xend, receiving.ticket, receiving.domain->config.uuid);
		lifecycle_finish(receiving.domain);
	}
	carrier_end(&receiving.carrier);
	if (receiving.domain)
		domain_unref(receiving.domain);
}
