#include "secured.h"
#include "base/cleanup.h"

#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <cmocka.h>

void test_host_begin(struct test_host *host)
{
	assert_int_equal(identity_make("host.test", &host->pem, NULL), 0);
	assert_int_equal(identity_fingerprint(host->pem, host->fingerprint, NULL), 0);
}

void test_host_end(struct test_host *host)
{
	free(host->pem);
}

json_t *trusted(const char *host, const char *address, const char *fingerprint)
{
	return json_pack("{s:s, s:s, s:s}", "host", host, "address", address, "fingerprint", fingerprint);
}

int secure_fd(const struct test_host *host, json_t *entries, const char *authority)
{
	_cleanup_json_ json_t *secure = json_pack("{s:s, s:o}", "identity", host->pem, "trusted", entries);
	_cleanup_free_ char *text = NULL;
	int fd = memfd_create("secure", MFD_CLOEXEC);

	if (authority)
		json_object_set_new(secure, "authority", json_string(authority));
	text = json_dumps(secure, JSON_COMPACT);
	assert_non_null(text);
	assert_int_equal(write(fd, text, strlen(text)), (ssize_t)strlen(text));
	return fd;
}

int listen_here(int *port)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t size = sizeof(address);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_int_equal(bind(listener, (struct sockaddr *)&address, size), 0);
	assert_int_equal(listen(listener, 16), 0);
	assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &size), 0);
	*port = ntohs(address.sin_port);
	return listener;
}
