/* xm's transfers, with a thread that plays xend: long requests, and several transfers at once. */
#include "base/cleanup.h"
#include "xm/client.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <cmocka.h>

#define LONG ((size_t)4 << 20) /* more than a socket takes at once */

/* The other side: takes a connection for each answer, reads that much of the request, and answers. */
struct peer {
	int listener;
	char directory[32], path[64];
	pthread_t thread;
	struct step {
		size_t reads; /* 0: up to the end of the request's headers */
		const char *answer;
	} steps[4];
	size_t got[4]; /* bytes of each request */
};

static void *play(void *context)
{
	struct peer *peer = context;

	for (size_t i = 0; i < ARRAY_SIZE(peer->steps) && peer->steps[i].answer; i++) {
		_cleanup_close_ int fd = accept(peer->listener, NULL, NULL);
		const struct step *step = &peer->steps[i];
		char bytes[4096] = "";

		while (step->reads ? peer->got[i] < step->reads : !strstr(bytes, "\r\n\r\n")) {
			size_t room = sizeof(bytes) - 1;
			ssize_t size =
				read(fd, bytes, step->reads && step->reads < room ? step->reads : room);

			if (size <= 0)
				break;
			peer->got[i] += (size_t)size;
			bytes[size] = '\0';
		}
		if (send(fd, step->answer, strlen(step->answer), MSG_NOSIGNAL) < 0)
			return NULL; /* the client notices */
	}
	return NULL;
}

static void peer_start(struct peer *peer, struct client *client)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};

	strcpy(peer->directory, "/tmp/xm-client-XXXXXX");
	assert_non_null(mkdtemp(peer->directory));
	snprintf(peer->path, sizeof(peer->path), "%s/socket", peer->directory);
	strcpy(address.sun_path, peer->path);
	peer->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	assert_int_equal(bind(peer->listener, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(listen(peer->listener, 4), 0);
	assert_int_equal(pthread_create(&peer->thread, NULL, play, peer), 0);
	setenv("XEND_SOCKET", peer->path, 1);
	assert_int_equal(client_open(client, NULL), 0);
}

static void peer_end(struct peer *peer, struct client *client)
{
	pthread_join(peer->thread, NULL);
	assert_null(client->transfers);
	client_close(client);
	close(peer->listener);
	unlink(peer->path);
	rmdir(peer->directory);
}

static int finish(struct transfer *transfer, struct error *error)
{
	while (!transfer->ended)
		assert_int_equal(client_wait(transfer->client, NULL, 0, 10000, error), 0);
	return transfer_result(transfer, error);
}

static int post(struct client *client, struct error *error)
{
	_cleanup_transfer_ struct transfer transfer = {0};
	_cleanup_free_ char *body = calloc(1, LONG);

	assert_non_null(body);
	assert_int_equal(
		transfer_start(&transfer, client, "POST", "/x", body, LONG, NULL, NULL, NULL, error), 0);
	return finish(&transfer, error);
}

static void a_long_request_is_sent_whole(void **state)
{
	struct peer peer = {.steps = {{LONG, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"}}};
	struct client client;

	(void)state;
	peer_start(&peer, &client);
	assert_int_equal(post(&client, NULL), 0);
	peer_end(&peer, &client);
	assert_true(peer.got[0] >= LONG);
}

static void a_refusal_counts_although_the_request_was_not_read(void **state)
{
	struct peer peer = {
		.steps = {{10, "HTTP/1.1 413 No\r\nContent-Length: 19\r\n\r\n{\"error\":\"Enough.\"}"},
			{10, ""}}};
	struct error error = {0};
	struct client client;

	(void)state;
	peer_start(&peer, &client);
	assert_int_equal(post(&client, &error), -EREMOTEIO);
	assert_string_equal(error.text, "Enough.");
	assert_int_equal(post(&client, &error), -EPIPE);
	peer_end(&peer, &client);
}

static int count_bytes(void *context, const char *bytes, size_t size, struct error *error)
{
	(void)bytes;
	(void)error;
	*(size_t *)context += size;
	return 0;
}

static int dislike(void *context, const char *bytes, size_t size, struct error *error)
{
	(void)context;
	(void)bytes;
	(void)size;
	return error_set(error, ENOSPC, "Full.");
}

/* Calls go on beside transfers, each on a connection of its own, and only a good answer goes to who receives.
 */
static void transfers_go_on_side_by_side(void **state)
{
	static const char good[] =
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
	struct peer peer = {.steps = {{0, good}, {0, good}, {0, "HTTP/1.1 409 No\r\n\r\n{\"error\":\"No.\"}"},
				    {0, "HTTP/1.1 200 OK\r\n\r\n{\"a\":1}"}}};
	struct transfer transfers[3] = {0};
	_cleanup_json_ json_t *reply = NULL;
	struct error error = {0};
	size_t bytes = 0, refused = 0;
	struct client client;

	(void)state;
	peer_start(&peer, &client);
	transfer_start(&transfers[0], &client, "GET", "/x", NULL, 0, NULL, count_bytes, &bytes, NULL);
	finish(&transfers[0], NULL);
	transfer_start(&transfers[1], &client, "GET", "/x", NULL, 0, NULL, dislike, NULL, NULL);
	assert_int_equal(finish(&transfers[1], &error), -ENOSPC);
	assert_string_equal(error.text, "Full.");
	transfer_start(&transfers[2], &client, "GET", "/x", NULL, 0, NULL, count_bytes, &refused, NULL);
	client_wait(&client, NULL, 0, 0, NULL); /* connects: the peer takes connections in their order */
	assert_int_equal(client_call(&client, "GET", "/x", NULL, &reply, &error), 0);
	assert_int_equal(json_integer_value(json_object_get(reply, "a")), 1);
	transfer_free(&transfers[1]);
	assert_int_equal(finish(&transfers[0], &error), 0);
	assert_int_equal(finish(&transfers[2], &error), -EBUSY);
	assert_string_equal(error.text, "No.");
	transfer_free(&transfers[0]);
	transfer_free(&transfers[2]);
	assert_false(transfers[2].started);
	peer_end(&peer, &client);
	assert_int_equal(bytes, 5);
	assert_int_equal(refused, 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_long_request_is_sent_whole),
		cmocka_unit_test(a_refusal_counts_although_the_request_was_not_read),
		cmocka_unit_test(transfers_go_on_side_by_side),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
