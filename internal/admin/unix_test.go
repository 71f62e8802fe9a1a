// SPDX-License-Identifier: Apache-2.0

package admin

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/ztunnel-go/ztunnel/test/leak"
)

// socketPath is short enough for a socket.
func socketPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "zt")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "admin.sock")
}

func TestAUnixSocketIsItsOwnersAlone(t *testing.T) {
	leak.Check(t)
	path := socketPath(t)
	old := unix.Umask(0) // which would let everyone in
	defer unix.Umask(old)
	s, err := ListenUnix("admin", path, quietLogger())
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Errorf("%v, %v", st.Mode(), err)
	}
	if _, err := ListenUnix("admin", path, quietLogger()); err == nil || !strings.Contains(err.Error(), "in use by another process") {
		t.Errorf("a second one: %v", err)
	}
	s.Serve(hello())
	body, err := NewClient(path).Get(t.Context(), "/hello", 100)
	if err != nil || string(body) != "hello\n" {
		t.Errorf("%q, %v", body, err)
	}
	if len(s.Addrs()) != 0 {
		t.Errorf("it has addresses: %v", s.Addrs())
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(path); !os.IsNotExist(err) {
		t.Errorf("left behind: %v", err)
	}
}

func TestAStaleSocketIsReplacedAndNothingElse(t *testing.T) {
	leak.Check(t)
	path := socketPath(t)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	s, err := ListenUnix("admin", path, quietLogger())
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	if err := s.Shutdown(context.Background()); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix("admin", path, quietLogger()); err == nil || !strings.Contains(err.Error(), "is no socket") {
		t.Errorf("over a file: %v", err)
	}
	if text, err := os.ReadFile(path); string(text) != "precious" {
		t.Errorf("the file is %q, %v", text, err)
	}
	if _, err := ListenUnix("admin", filepath.Join(path, "x"), quietLogger()); err == nil {
		t.Error("below a file")
	}
}

func TestClientsAreToldWhatIsWrong(t *testing.T) {
	addr := serve(t, paths{
		"/bad":  func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusBadRequest, "no such pod\n") },
		"/long": func(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, strings.Repeat("x", 101)) },
	})
	for page, want := range map[string]string{"/bad": "400 Bad Request: no such pod", "/long": "more than 100 bytes", "/none": "404"} {
		if _, err := NewClient(addr.String()).Get(t.Context(), page, 100); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", page, err)
		}
	}
	if _, err := NewClient("./nobody.sock").Get(t.Context(), "/", 100); err == nil || !strings.Contains(err.Error(), "ask the proxy at ./nobody.sock") {
		t.Errorf("nobody: %v", err)
	}
}
