/*
 * xend: `xend start` in the background, `xend` alone in the foreground, `xend
 * stop|restart|status`. Stopping xend leaves the guests running. It writes its log
 * file, or, in the foreground of a terminal, to the terminal.
 */
#include "base/cleanup.h"
#include "base/log.h"
#include "base/surroundings.h"
#include "base/turns.h"
#include "xend/adopt.h"
#include "xend/api.h"
#include "xend/domain.h"
#include "xend/host_network.h"
#include "xend/logfile.h"
#include "xend/processor.h"
#include "xend/process.h"
#include "xend/relocation.h"
#include "xend/store.h"
#include "xend/trust.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/pidfd.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define STOP_MS 30000
#define STOP_CHECK_US 50000
#define DYING_MS 300

static void warn_of_settings(const struct xend_config *config)
{
	_cleanup_json_ json_t *warnings = xend_config_warnings(config);

	for (size_t i = 0; i < json_array_size(warnings); i++)
		log_warning("%s", json_string_value(json_array_get(warnings, i)));
}

static enum log_level level_of(const char *name)
{
	static const struct {
		const char *name;
		enum log_level level;
	} levels[] = {{"DEBUG", LOG_DEBUG_}, {"INFO", LOG_INFO_}, {"WARNING", LOG_WARNING_},
		{"ERROR", LOG_ERROR_}, {"CRITICAL", LOG_ERROR_}};

	for (size_t i = 0; i < ARRAY_SIZE(levels); i++)
		if (strcasecmp(levels[i].name, name) == 0)
			return levels[i].level;
	return LOG_DEBUG_;
}

static struct flock whole_file(void)
{
	return (struct flock){.l_type = F_WRLCK, .l_whence = SEEK_SET};
}

static int open_pid_file(const struct paths *paths)
{
	char path[96];

	snprintf(path, sizeof(path), "%s/xend.pid", paths->run);
	return open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0644);
}

/* The process that holds the pid file's lock; 0: none. */
static pid_t running(const struct paths *paths)
{
	_cleanup_close_ int file = open_pid_file(paths);
	struct flock lock = whole_file();

	return file >= 0 && fcntl(file, F_GETLK, &lock) == 0 && lock.l_type != F_UNLCK ? lock.l_pid : 0;
}

/* The same, but of one that is just dying (its threads end one after the other) its end is awaited. */
static pid_t running_on(const struct paths *paths)
{
	pid_t pid;

	do {
		pid = running(paths);
		_cleanup_close_ int process = pid ? pidfd_open(pid, 0) : -1;

		if (pid && process >= 0 && process_wait_if_dying(process, pid, DYING_MS, NULL) == -ETIMEDOUT)
			break;
	} while (pid);
	return pid;
}

/* The descriptor stays open, and with it the lock, as long as the process lives. */
static int take_pid_file(const struct paths *paths, struct error *error)
{
	int file = open_pid_file(paths);
	struct flock lock = whole_file();

	if (file < 0)
		return error_set(
			error, errno, "Unable to write %s/xend.pid: %s.", paths->run, strerror(errno));
	if (fcntl(file, F_SETLK, &lock) < 0) {
		close(file);
		return error_set(error, EBUSY, "xend is running already.");
	}
	if (ftruncate(file, 0) < 0 || dprintf(file, "%d\n", (int)getpid()) < 0) {
		close(file);
		return error_set(error, EIO, "Unable to write %s/xend.pid.", paths->run);
	}
	return file;
}

static int read_boot_id(char id[64], struct error *error)
{
	_cleanup_fclose_ FILE *file = fopen("/proc/sys/kernel/random/boot_id", "re");

	if (!file || fscanf(file, "%63s", id) != 1)
		return error_set(error, EIO, "Unable to read /proc/sys/kernel/random/boot_id.");
	return 0;
}

static void check_stopped(evutil_socket_t fd, short what, void *argument)
{
	struct xend *xend = argument;

	(void)fd;
	(void)what;
	xend_lock(xend);
	if (!xend->workers)
		event_base_loopexit(xend->base, NULL);
	xend_changed(xend);
	xend_unlock(xend);
}

static void stop_signal(evutil_socket_t number, short what, void *argument)
{
	struct xend *xend = argument;
	struct timeval check = {.tv_usec = STOP_CHECK_US}, latest = {.tv_sec = STOP_MS / 2000};
	struct event *again;

	(void)what;
	xend_lock(xend);
	if (!xend->stopping) {
		log_info("Stopping (%s); the guests run on.", strsignal((int)number));
		xend->stopping = true;
		eventfd_write(xend->stop, 1);
		again = event_new(xend->base, -1, EV_PERSIST, check_stopped, xend);
		if (again)
			event_add(again, &check);
		/* A job that waits for a peer's word is settled by the next xend. */
		event_base_loopexit(xend->base, &latest);
	}
	xend_changed(xend);
	xend_unlock(xend);
}

static void reopen_signal(evutil_socket_t number, short what, void *argument)
{
	struct xend *xend = argument;
	struct error error;

	(void)number;
	(void)what;
	if (logfile_open(&xend->config, &error) < 0)
		log_error("%s", error.text);
}

static int watch_signals(struct xend *xend, bool terminal, struct error *error)
{
	const struct {
		int number;
		event_callback_fn handle;
	} signals[] = {{SIGTERM, stop_signal}, {SIGINT, stop_signal},
		{SIGHUP, terminal ? stop_signal : reopen_signal}};

	signal(SIGPIPE, SIG_IGN);
	for (size_t i = 0; i < ARRAY_SIZE(signals); i++) {
		struct event *event = evsignal_new(xend->base, signals[i].number, signals[i].handle, xend);

		if (!event || event_add(event, NULL) < 0)
			return error_set(error, ENOMEM, "Unable to watch for signals.");
	}
	return 0;
}

/* Of descriptors as many as may be had: each guest and each client takes some. */
static void raise_limits(void)
{
	struct rlimit descriptors;

	if (getrlimit(RLIMIT_NOFILE, &descriptors) < 0)
		return;
	descriptors.rlim_cur = descriptors.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &descriptors) < 0)
		log_warning("The number of file descriptors stays limited: %s.", strerror(errno));
}

/* What is said to whoever has started xend: `ready` hears an 'E' and why it does not run, or a 'W' and a line
 * for each thing that does not work. */
static void tell(int ready, char kind, const char *text)
{
	if (ready >= 0 && dprintf(ready, "%c%s\n", kind, text) < 0)
		log_error("Nobody is left to be told.");
}

static void warn(int ready, const char *what, const char *why)
{
	char text[4500];

	snprintf(text, sizeof(text), "%s: %s", what, why);
	log_error("%s", text);
	tell(ready, 'W', text);
}

/* A host without its bridge still serves guests that need none; the others are told. */
static void start_network(struct xend *xend, int ready)
{
	char text[sizeof(xend->network.failure) + 64];
	const char *why;

	xend_lock(xend);
	host_network_begin(xend);
	why = host_network_failure(xend);
	if (why)
		snprintf(text, sizeof(text), "The host's network is not set up for guests: %s", why);
	xend_unlock(xend);
	if (why)
		tell(ready, 'W', text);
}

static int set_up(struct xend *xend, bool terminal, int ready, struct error *error)
{
	char path[300], boot_id[64];
	int r = read_boot_id(boot_id, error);

	if (r >= 0)
		r = paths_check_mounted(xend->paths.state, error);
	if (r >= 0) {
		mode_t mask = umask(0077); /* configurations may hold secrets */

		snprintf(path, sizeof(path), "%s/xend.db", xend->paths.state);
		r = store_open(&xend->store, path, boot_id, error);
		umask(mask);
	}
	if (r >= 0)
		xend->trust = trust_open(xend);
	if (r >= 0 && xend->trust && xend->trust->unusable.code)
		warn(ready, "No guest can move between this host and others", xend->trust->unusable.text);
	if (r >= 0)
		r = xend_init(xend, error);
	if (r >= 0)
		r = watch_signals(xend, terminal, error);
	if (r < 0)
		return r;
	start_network(xend, ready);
	xend_lock(xend);
	r = adopt_all(xend, error);
	if (r >= 0 && xend->config.relocation_server)
		processor_ask_ahead(xend);
	xend_unlock(xend);
	if (r >= 0)
		r = relocation_start(xend, error);
	if (r >= 0) {
		xend_lock(xend);
		adopt_guests(xend);
		xend_unlock(xend);
	}
	/* Last: who finds the socket finds a xend that answers. */
	return r >= 0 && xend->config.unix_server ? api_start(xend, error) : r;
}

/* Runs until it is told to stop. `ready` (-1: none) is a pipe that is closed once all is set up, or hears why
 * not. */
static int serve(struct xend *xend, bool background, int ready, struct error *error)
{
	_cleanup_close_ int pid_file = running_on(&xend->paths)
					       ? error_set(error, EBUSY, "xend is running already.")
					       : take_pid_file(&xend->paths, error);
	bool terminal = !background && isatty(STDERR_FILENO);
	int r = pid_file < 0 ? pid_file : terminal ? 0 : logfile_open(&xend->config, error);

	raise_limits();
	if (r >= 0)
		r = set_up(xend, terminal, ready, error);
	if (r < 0) {
		log_error("%s", error->text);
		tell(ready, 'E', error->text);
		return r;
	}
	logfile_keep(&xend->config);
	warn_of_settings(&xend->config);
	log_info("xend %s is ready.", FERRY_VERSION);
	cleanup_close(&ready);
	event_base_dispatch(xend->base);
	log_tell_counted(true);
	log_info("Stopped.");
	return 0;
}

/* Until xend serves, or has said why it does not. Owns `ready`. */
static int hear(int ready, struct error *error)
{
	_cleanup_fclose_ FILE *words = fdopen(ready, "r");
	char line[5000];
	int r = 0;

	if (!words) {
		close(ready);
		return error_set(error, ENOMEM, "Out of memory.");
	}
	while (fgets(line, sizeof(line), words)) {
		line[strcspn(line, "\n")] = 0;
		if (line[0] == 'W')
			fprintf(stderr, "Warning: %s\n", line + 1);
		else
			r = error_set(error, EIO, "%s", line + 1);
	}
	return r;
}

static int start(struct xend *xend, struct error *error)
{
	_cleanup_close_ int null = -1;
	int ready[2], r;
	pid_t pid;

	if (running_on(&xend->paths))
		return 0;
	if (pipe2(ready, O_CLOEXEC) < 0)
		return error_set(error, errno, "Unable to start xend: %s.", strerror(errno));
	pid = fork();
	if (pid < 0)
		return error_set(error, errno, "Unable to start xend: %s.", strerror(errno));
	if (pid == 0) {
		close(ready[0]);
		setsid();
		null = open("/dev/null", O_RDWR | O_CLOEXEC);
		if (null < 0 || dup2(null, STDIN_FILENO) < 0 || chdir("/") < 0)
			_exit(1);
		r = serve(xend, true, ready[1], error);
		_exit(r < 0 ? 1 : 0);
	}
	close(ready[1]);
	r = hear(ready[0], error);
	if (r < 0)
		waitpid(pid, NULL, 0);
	else if (waitpid(pid, NULL, WNOHANG) == pid)
		r = error_set(error, EIO, "xend ended at once; its reason is in %s.", xend->config.logfile);
	return r;
}

static int stop(struct xend *xend, struct error *error)
{
	pid_t pid = running(&xend->paths);
	_cleanup_close_ int process = pid ? pidfd_open(pid, 0) : -1;

	if (process < 0)
		return 0;
	if (pidfd_send_signal(process, SIGTERM, NULL, 0) < 0)
		return error_set(
			error, errno, "Unable to stop xend (process %d): %s.", (int)pid, strerror(errno));
	if (process_wait(process, STOP_MS, NULL) < 0)
		return error_set(error, ETIMEDOUT, "xend (process %d) has not stopped within %d s.", (int)pid,
			STOP_MS / 1000);
	return 0;
}

static int restart(struct xend *xend, struct error *error)
{
	int r = stop(xend, error);

	return r < 0 ? r : start(xend, error);
}

static int status(struct xend *xend, struct error *error)
{
	pid_t pid = running(&xend->paths);

	if (!pid)
		return error_set(error, ESRCH, "xend is not running.");
	printf("xend is running (process %d).\n", (int)pid);
	return 0;
}

static int foreground(struct xend *xend, struct error *error)
{
	return serve(xend, false, -1, error);
}

int main(int count, char **words)
{
	static const struct {
		const char *word;
		int (*run)(struct xend *xend, struct error *error);
		bool configured; /* a mistake in the configuration is one for it as well */
	} commands[] = {{"foreground", foreground, true}, {"start", start, true}, {"stop", stop, false},
		{"restart", restart, true}, {"status", status, false}};
	static const char usage[] = "Usage: xend [start|stop|restart|status|foreground]\n";
	const char *word = count > 1 ? words[1] : "foreground";
	static struct xend xend;
	struct error error = {0};
	int r;

	surroundings_mend();
	for (size_t i = 0; i < ARRAY_SIZE(commands) && count <= 2; i++) {
		if (strcmp(commands[i].word, word) != 0)
			continue;
		turns_short();
		r = xend_config_load(&xend.config, xend_config_path(), &error);
		log_open("xend", r < 0 ? LOG_INFO_ : level_of(xend.config.loglevel));
		if (!commands[i].configured)
			r = 0;
		if (r >= 0)
			r = paths_init(&xend.paths, &error);
		if (r >= 0)
			r = paths_create(&xend.paths, &error);
		if (r >= 0)
			r = commands[i].run(&xend, &error);
		if (r < 0)
			fprintf(stderr, "Error: %s\n", error.text);
		return r < 0 ? 1 : 0;
	}
	if (count == 2 && strcmp(word, "--version") == 0) {
		printf("xend %s (Ferry)\n", FERRY_VERSION);
		return 0;
	}
	if (count == 2 &&
		(strcmp(word, "--help") == 0 || strcmp(word, "-h") == 0 || strcmp(word, "help") == 0)) {
		printf("%sxend(8) tells more.\n", usage);
		return 0;
	}
	fputs(usage, stderr);
	return 2;
}
