/* Preloaded into the server under test. tritonserver's SageMaker front end listens on every interface and has no option
 * for its address; a test server must not be reachable from the network. An IPv4 bind to "any" becomes a bind to
 * loopback; every other bind is passed on as it is. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

int bind(int fd, const struct sockaddr *address, socklen_t length) {
  int (*next)(int, const struct sockaddr *, socklen_t) =
      (int (*)(int, const struct sockaddr *, socklen_t))dlsym(RTLD_NEXT, "bind");
  struct sockaddr_in loopback;

  if (address != NULL && address->sa_family == AF_INET && length == sizeof loopback) {
    memcpy(&loopback, address, sizeof loopback);
    if (loopback.sin_addr.s_addr == htonl(INADDR_ANY)) {
      loopback.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
      return next(fd, (const struct sockaddr *)&loopback, length);
    }
  }
  return next(fd, address, length);
}
