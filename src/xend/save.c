#include "xend/jobs.h"
#include "base/cleanup.h"
#include "base/log.h"
#include "xend/carrier.h"
#include "xend/checkpoint_file.h"
#include "xend/checkpoint_open.h"
#include "xend/endings.h"
#include "xend/filling.h"
#include "xend/guest.h"
#include "xend/guest_record.h"
#include "xend/lifecycle.h"
#include "xend/objections.h"
#include "xend/saved_disks.h"
#include "xend/shared_memory.h"
#include "xend/store.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>

/* Until the file is complete. What is on the disks, xend finds out while the guest stands still. */
static int hear_save(
	struct carrier *carrier, struct domain *domain, bool keep, struct message *saved, struct error *error)
{
	_cleanup_json_ json_t *disks = NULL;

	for (;;) {
		_cleanup_message_ struct message event = {0};
		int r = carrier_hear(carrier, &event, error);

		if (r >= 0 && carrier_heard(&event, "paused")) {
			json_decref(disks);
			disks = saved_disks_portray(carrier->xend, &domain->config, keep, carrier->cancel);
		} else if (r >= 0 && carrier_heard(&event, "describe")) {
			r = carrier_say(carrier, json_pack("{s:s, s:O*}", "do", "disks", "disks", disks),
				NULL, 0, error);
		} else if (r >= 0 && carrier_heard(&event, "saved")) {
			*saved = event;
			event = (struct message){0};
			return 0;
		} else if (r >= 0) {
			r = error_set(
				error, EPROTO, "The carrier said something else where 'saved' was due.");
		}
		if (r < 0)
			return r;
	}
}

static int run_save(struct domain *domain, const struct save_options *options, int file, struct reply *reply,
	struct message *saved, struct error *error)
{
	_cleanup_carrier_ struct carrier carrier = {0};
	_cleanup_close_ int guest = guest_connect(domain, error);
	_cleanup_json_ json_t *description = domain_pack(domain);
	int r, fds[] = {guest, file};

	if (guest < 0)
		return guest;
	r = filling_wait(domain, reply_cancel_fd(reply), error);
	if (r >= 0)
		r = shared_memory_leave(domain, error);
	if (r >= 0)
		r = carrier_start(&carrier, domain->xend, reply_cancel_fd(reply), reply, error);
	carrier.patience_s = (unsigned)domain->xend->config.storage_timeout;
	if (r >= 0)
		objections_portray_machine(domain, description);
	if (r >= 0)
		r = carrier_say(&carrier,
			json_pack("{s:s, s:{s:i}, s:{s:i}, s:O, s:b, s:b, s:b}", "do", "save", "guest", "fd",
				0, "file", "fd", 1, "domain", description, "live", options->live, "compress",
				options->compress, "describe_disks", 1),
			fds, ARRAY_SIZE(fds), error);
	return r < 0 ? r : hear_save(&carrier, domain, options->keep, saved, error);
}

static void carry_on(struct domain *domain)
{
	struct error error;

	if (guest_carry_on(domain, &error) < 0)
		log_error("Domain '%s' could not go on: %s", domain->config.name, error.text);
}

/* The file stays, and the guest is no more, unless it is kept: both, or neither. */
static int make_certain(struct domain *domain, struct checkpoint_file *file, bool keep, struct error *error)
{
	struct store *store = domain->xend->store;
	int r = store_begin(store, false, error);

	if (r >= 0)
		r = checkpoint_file_record_staying(file, error);
	if (r >= 0 && !keep)
		r = lifecycle_record_end(domain, error);
	if (r >= 0)
		r = store_commit(store, error);
	if (r < 0) {
		store_rollback(store);
		domain->phase = DOMAIN_LIVE;
		return r;
	}
	guest_record_write(domain);
	checkpoint_file_stays(file);
	return 0;
}

/* From the guest's whole state in the file to the moment from which on it is that guest. */
static int publish(struct domain *domain, struct checkpoint_file **file, bool keep, struct error *error)
{
	int r = checkpoint_file_publish(file, domain->config.uuid, keep, error);

	if (r < 0)
		return r;
	r = make_certain(domain, *file, keep, error);
	if (r < 0)
		checkpoint_file_take_back(file, error);
	return r;
}

void job_save(struct domain *domain, const struct save_options *options, struct reply *reply)
{
	_cleanup_checkpoint_file_ struct checkpoint_file *file = NULL;
	_cleanup_message_ struct message saved = {0};
	struct error error;
	int r;

	r = domain_begin_job(domain, "being saved", reply_cancel_fd(reply), &error);
	if (r < 0) {
		reply_error(reply, &error);
		return;
	}
	r = checkpoint_file_create(
		&file, domain->xend, options->file, options->force, reply_cancel_fd(reply), &error);
	if (r >= 0) {
		reply_stream(reply, "application/x-ndjson");
		r = run_save(domain, options, checkpoint_file_fd(file), reply, &saved, &error);
	}
	if (r >= 0)
		r = publish(domain, &file, options->keep, &error);
	if (r < 0) {
		log_warning("Domain '%s' was not saved to %s: %s", domain->config.name, options->file,
			error.text);
		carry_on(domain);
		domain_explain_end(domain, "saved", &error);
		domain_end_job(domain);
		/* Before it is said: who hears of a full disk finds it as it was. */
		checkpoint_file_discard(&file);
		reply_error(reply, &error);
		return;
	}
	log_info("Domain '%s' (ID %u) is saved to %s.", domain->config.name, domain->id, options->file);
	if (options->keep) {
		carry_on(domain);
		domain_end_job(domain);
	} else {
		domain->cancel = -1;
		ending_by_order(domain, "saved", options->file, NULL);
		lifecycle_leave(domain);
	}
	/* Closed before it is said: who hears of it may take the file system away. */
	checkpoint_file_discard(&file);
	json_object_set_new(saved.body, "event", json_string("done"));
	reply_line(reply, json_incref(saved.body));
	reply_end(reply);
	if (!options->keep)
		lifecycle_finish(domain);
}

struct restoring {
	struct xend *xend;
	const struct restore_options *options;
	int file;
	bool paused; /* the user's wish, or as the guest was when it was saved */
	struct domain *domain;
	struct shared_memory *shared; /* of a clone */
	struct carrier carrier;
	json_t *offer; /* owned: what the file holds */
	struct error error;
};

/* The carrier knows the file only as a descriptor. */
static int about_file(const struct restoring *restoring, int r, struct error *error)
{
	return r < 0 && r != -ECANCELED
		       ? error_prefix(error, "Unable to restore %s: ", restoring->options->file)
		       : r;
}

/* Clones share memory where the kernel can bring it to them page by page. */
static int find_shared(struct restoring *restoring, const json_t *offer, uint64_t mib, struct error *error)
{
	const char *identity = json_string_value(json_object_get(offer, "identity"));

	if (!identity || restoring->options->eager || access("/dev/userfaultfd", R_OK | W_OK) < 0)
		return 0;
	restoring->shared = shared_memory_for(restoring->xend, identity, mib, error);
	return restoring->shared ? 0 : -error->code;
}

static int accept_offer(struct restoring *restoring, struct error *error)
{
	_cleanup_json_ json_t *answer = json_pack("{s:s}", "do", "accept");
	_cleanup_close_ int guest = guest_connect(restoring->domain, error);
	struct filling_fds fds;
	int r = guest < 0 ? guest : filling_fds_begin(&fds, restoring->domain, guest, answer, error);

	if (r < 0)
		return r;
	r = carrier_say(&restoring->carrier, json_incref(answer), fds.list.fds, fds.list.count, error);
	filling_fds_end(&fds);
	return r;
}

/* Up to the moment when the guest's state is complete; the carrier, and a domain that was made is the
 * caller's to discard. */
static int run_restore(
	struct restoring *restoring, struct reply *reply, struct message *loaded, struct error *error)
{
	_cleanup_guest_config_ struct guest_config config = {0};
	struct carrier *carrier = &restoring->carrier;
	const struct restore_options *options = restoring->options;
	_cleanup_message_ struct message offer = {0};
	bool was_paused;
	int r = carrier_start(carrier, restoring->xend, reply_cancel_fd(reply), reply, error);

	carrier->patience_s = (unsigned)restoring->xend->config.storage_timeout;
	if (r >= 0)
		r = carrier_say(carrier,
			json_pack("{s:s, s:{s:i}, s:b}", "do", "restore", "file", "fd", 0, "lazy",
				!options->eager),
			&restoring->file, 1, error);
	if (r >= 0)
		r = carrier_expect(carrier, "offer", &offer, error);
	if (r >= 0)
		restoring->offer = json_incref(offer.body);
	if (r >= 0)
		r = domain_unpack(json_object_get(offer.body, "domain"), &config, &was_paused, error);
	if (r >= 0)
		r = objections_to_restore(restoring->xend, &config, json_object_get(offer.body, "domain"),
			options->accept, error);
	if (r < 0)
		return about_file(restoring, r, error);
	if (options->clone.name) {
		r = clone_config(&config, &options->clone, error);
		if (r >= 0)
			r = find_shared(restoring, offer.body, config.memory, error);
		if (r < 0)
			return r;
	}
	restoring->paused |= was_paused;
	r = lifecycle_expect(restoring->xend, &config, restoring->paused,
		options->eager ? GUEST_RESTORE : GUEST_RESTORE_LAZY, restoring->shared, NULL,
		reply_cancel_fd(reply), &restoring->domain, error);
	if (r < 0)
		return r;
	domain_want_restart(restoring->domain, domain_packed_restart(json_object_get(offer.body, "domain")));
	r = accept_offer(restoring, error);
	/* The disks are the new guest's and locked by now; its memory comes meanwhile. */
	if (r >= 0)
		r = saved_disks_compare(restoring->xend, &restoring->domain->config,
			json_object_get(offer.body, "disks"),
			objections_accepted(options->accept, ACCEPT_DISKS), reply_cancel_fd(reply), error);
	return r < 0 ? r : about_file(restoring, carrier_expect(carrier, "loaded", loaded, error), error);
}

/* The guest is complete but for memory that may still come: it becomes ours and runs. */
static int settle_in(struct restoring *restoring, bool filling, struct error *error)
{
	struct domain *domain = restoring->domain;
	int r = filling ? filling_begin(domain, &restoring->carrier, restoring->options->file,
				  json_string_value(json_object_get(restoring->offer, "identity")), error)
			: 0;

	return r < 0 ? r : lifecycle_arrived(domain, error);
}

static void restored(struct restoring *restoring, const struct message *loaded, struct reply *reply)
{
	struct domain *domain = restoring->domain;

	log_info("Domain '%s' is restored from %s with ID %u.", domain->config.name, restoring->options->file,
		domain->id);
	for (size_t i = 0; i < json_array_size(domain->warnings); i++)
		reply_line(reply, json_pack("{s:s, s:O}", "event", "progress", "error",
					  json_array_get(domain->warnings, i)));
	reply_line(reply, json_pack("{s:s, s:o, s:O*}", "event", "done", "domain", domain_describe(domain),
				  "milliseconds", json_object_get(loaded->body, "milliseconds")));
	reply_end(reply);
}

void job_restore(struct xend *xend, const struct restore_options *options, struct reply *reply)
{
	struct restoring restoring = {.xend = xend, .options = options, .paused = options->paused};
	_cleanup_message_ struct message loaded = {0};
	_cleanup_close_ int file =
		checkpoint_open_file(xend, options->file, reply_cancel_fd(reply), &restoring.error);
	_cleanup_domain_ struct domain *domain = NULL;
	bool filling;
	int r = file;

	restoring.file = file;
	if (r >= 0) {
		reply_stream(reply, "application/x-ndjson");
		r = run_restore(&restoring, reply, &loaded, &restoring.error);
	}
	domain = restoring.domain;
	if (domain && r < 0) {
		xend_unlock(xend);
		r = guest_explain(domain, r, &restoring.error);
		xend_lock(xend);
	}
	restoring.carrier.patience_s = 0;
	filling = r >= 0 && json_is_true(json_object_get(loaded.body, "filling"));
	if (r >= 0 && domain)
		r = settle_in(&restoring, filling, &restoring.error);
	if (r < 0 || !domain) {
		log_warning("%s was not restored: %s", options->file, restoring.error.text);
		if (domain && domain->phase != DOMAIN_GONE)
			lifecycle_finish(domain);
		/* Before it is said: who hears of it finds nothing left. */
		carrier_end(&restoring.carrier);
		reply_error(reply, &restoring.error);
	} else {
		restored(&restoring, &loaded, reply);
		if (filling)
			filling_follow(domain, &restoring.carrier, take_fd(&file), options->file,
				json_string_value(json_object_get(restoring.offer, "identity")));
	}
	carrier_end(&restoring.carrier);
	shared_memory_unref(xend, restoring.shared);
	json_decref(restoring.offer);
}
