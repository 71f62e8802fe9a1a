// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ztunnel-go/ztunnel/internal/netns"
	"github.com/ztunnel-go/ztunnel/test/leak"
)

const ownNetNS = "/proc/self/ns/net"

const prevResult = `{"cniVersion":"1.0.0","interfaces":[{"name":"eth0","sandbox":"/x"}],"ips":[{"address":"10.0.0.7/24","interface":0},{"address":"fd00::7/64"}],"dns":{},"unknown":[1,2]}`

func config(socket string) string {
	return `{"cniVersion":"1.0.0","name":"net","type":"zagent-cni","socket":"` + socket + `","excludeNamespaces":["kube-system"],"timeoutSeconds":20,"prevResult":` + prevResult + `}`
}

// agent serves fn at a socket of its own.
func agent(t *testing.T, fn ServeFunc) (socket string) {
	t.Helper()
	socket = filepath.Join(t.TempDir(), "cni.sock")
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := Serve(ctx, socket, fn, slog.New(slog.DiscardHandler)); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); serving.Wait() })
	for limit := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		c, err := net.Dial("unixpacket", socket)
		if err == nil {
			c.Close() // a plugin that says nothing
			return socket
		}
		if time.Now().After(limit) {
			t.Fatal(err)
		}
	}
}

const args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u-1;K8S_POD_INFRA_CONTAINER_ID=c"

func execute(t *testing.T, command, args, stdin string) (string, *Error) {
	t.Helper()
	var out bytes.Buffer
	status := Main(t.Context(), Env{Command: command, ContainerID: "sandbox", NetNS: ownNetNS, Args: args}, strings.NewReader(stdin), &out)
	if status == 0 {
		return out.String(), nil
	}
	var failed Error
	if err := json.Unmarshal(out.Bytes(), &failed); err != nil || failed.Code == 0 || failed.Msg == "" {
		t.Fatalf("%s failed with %q, which is no error of CNI: %v", command, out.String(), err)
	}
	return "", &failed
}

func TestAddPassesTheResultThroughWhenTheAgentHasCapturedThePod(t *testing.T) {
	leak.Check(t)
	own, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	var got Request
	var same bool
	socket := agent(t, func(_ context.Context, req Request, ns *netns.NS) error {
		defer ns.Close()
		got, same = req, ns.ID() == own.ID()
		return nil
	})
	out, failed := execute(t, "ADD", args, config(socket))
	if failed != nil {
		t.Fatal(failed)
	}
	var want, have any
	if json.Unmarshal([]byte(prevResult), &want) != nil || json.Unmarshal([]byte(out), &have) != nil || !reflect.DeepEqual(want, have) {
		t.Errorf("the result is %s", out)
	}
	if got.Op != Add || got.Name != "web" || got.Namespace != "shop" || got.UID != "u-1" || got.Sandbox != "sandbox" || len(got.Addrs) != 2 || got.Addrs[1].String() != "fd00::7" {
		t.Errorf("the agent was asked %+v", got)
	}
	if !same {
		t.Error("the agent got another namespace")
	}
	if got.Wait <= 0 || got.Wait >= 20*time.Second {
		t.Errorf("the agent was given %v", got.Wait)
	}
}

func TestAddFailsWithTheAgentsReason(t *testing.T) {
	leak.Check(t)
	socket := agent(t, func(_ context.Context, _ Request, ns *netns.NS) error {
		ns.Close()
		return errors.New("no proxy is connected")
	})
	_, failed := execute(t, "ADD", args, config(socket))
	if failed == nil || failed.Code != codeTryAgain || !strings.Contains(failed.Details, "no proxy is connected") || failed.CNIVersion != "1.0.0" {
		t.Errorf("%+v", failed)
	}
	if _, failed := execute(t, "CHECK", args, config(socket)); failed == nil {
		t.Error("CHECK of a pod that is not captured succeeds")
	}
}

func TestWithoutAnAgentOnlyExcludedPodsStart(t *testing.T) {
	leak.Check(t)
	stdin := strings.Replace(config("/nonexistent/cni.sock"), `"timeoutSeconds":20`, `"timeoutSeconds":1`, 1)
	_, failed := execute(t, "ADD", args, stdin)
	if failed == nil || failed.Code != codeTryAgain || !strings.Contains(failed.Details, "no node agent is there") {
		t.Errorf("%+v", failed)
	}
	for name, args := range map[string]string{
		"an excluded namespace": "K8S_POD_NAMESPACE=kube-system;K8S_POD_NAME=dns",
		"no pod at all":         "",
	} {
		if out, failed := execute(t, "ADD", args, stdin); failed != nil || !strings.Contains(out, "10.0.0.7") {
			t.Errorf("%s: %q, %v", name, out, failed)
		}
	}
	if out, failed := execute(t, "DEL", args, stdin); failed != nil || out != "" {
		t.Errorf("DEL: %q, %v", out, failed)
	}
}

func TestAddWaitsForAnAgentThatComes(t *testing.T) {
	leak.Check(t)
	socket := filepath.Join(t.TempDir(), "cni.sock")
	ctx, cancel := context.WithCancel(context.Background())
	var serving sync.WaitGroup
	serving.Go(func() {
		time.Sleep(300 * time.Millisecond) // as an agent that is replaced
		_ = Serve(ctx, socket, func(_ context.Context, _ Request, ns *netns.NS) error { ns.Close(); return nil }, slog.New(slog.DiscardHandler))
	})
	defer serving.Wait()
	defer cancel()
	if _, failed := execute(t, "ADD", args, config(socket)); failed != nil {
		t.Error(failed)
	}
}

func TestDelTellsTheSandbox(t *testing.T) {
	leak.Check(t)
	var got Request
	socket := agent(t, func(_ context.Context, req Request, ns *netns.NS) error {
		got = req
		if ns != nil {
			t.Error("DEL came with a namespace")
		}
		return errors.New("whatever")
	})
	if out, failed := execute(t, "DEL", args, config(socket)); failed != nil || out != "" {
		t.Errorf("%q, %v", out, failed)
	}
	if got.Op != Del || got.Sandbox != "sandbox" {
		t.Errorf("%+v", got)
	}
}

func TestWhatIsNotAddOrDel(t *testing.T) {
	var v struct {
		CNIVersion        string   `json:"cniVersion"`
		SupportedVersions []string `json:"supportedVersions"`
	}
	out, failed := execute(t, "VERSION", "", `{"cniVersion":"0.4.0"}`)
	if failed != nil || json.Unmarshal([]byte(out), &v) != nil || v.CNIVersion != "0.4.0" || len(v.SupportedVersions) != 5 {
		t.Errorf("VERSION: %q, %v", out, failed)
	}
	for _, command := range []string{"STATUS", "GC"} {
		if out, failed := execute(t, command, "", config("/nonexistent")); failed != nil || out != "" {
			t.Errorf("%s: %q, %v", command, out, failed)
		}
	}
	for name, tc := range map[string]struct {
		command, args, stdin string
		code                 int
	}{
		"unknown command":    {"JUMP", args, config("/x"), codeEnv},
		"no command":         {"", args, config("/x"), codeEnv},
		"no JSON":            {"ADD", args, "{", codeDecode},
		"another version":    {"ADD", args, `{"cniVersion":"2.0.0"}`, codeVersion},
		"no version":         {"ADD", args, `{}`, codeVersion},
		"nothing before":     {"ADD", args, `{"cniVersion":"1.0.0"}`, codeConfig},
		"null before":        {"ADD", args, `{"cniVersion":"1.0.0","prevResult":null}`, codeConfig},
		"a bad address":      {"ADD", args, `{"cniVersion":"1.0.0","prevResult":{"ips":[{"address":"10.0.0.7"}]}}`, codeDecode},
		"a bad timeout":      {"ADD", args, `{"cniVersion":"1.0.0","timeoutSeconds":-1}`, codeConfig},
		"a relative socket":  {"ADD", args, `{"cniVersion":"1.0.0","socket":"x"}`, codeConfig},
		"bad arguments":      {"ADD", "K8S_POD_NAME", config("/x"), codeEnv},
		"half a pod":         {"ADD", "K8S_POD_NAME=web", config("/x"), codeEnv},
		"another descriptor": {"ADD", args, config("/x"), codeEnv},
	} {
		env := Env{Command: tc.command, ContainerID: "c", NetNS: ownNetNS, Args: tc.args}
		if name == "another descriptor" {
			env.NetNS = os.DevNull
		}
		var out bytes.Buffer
		status := Main(t.Context(), env, strings.NewReader(tc.stdin), &out)
		var failed Error
		if json.Unmarshal(out.Bytes(), &failed); status != 1 || failed.Code != tc.code {
			t.Errorf("%s: %d, %s, want code %d", name, status, out.String(), tc.code)
		}
	}
}

func TestTheAgentIsFreedWhenThePluginGoes(t *testing.T) {
	leak.Check(t)
	asked, freed := make(chan struct{}), make(chan struct{})
	socket := agent(t, func(ctx context.Context, _ Request, ns *netns.NS) error {
		defer ns.Close()
		close(asked)
		<-ctx.Done()
		close(freed)
		return ctx.Err()
	})
	ns, err := netns.Current()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { <-asked; cancel() }()
	var refused *Refused
	if err := Ask(ctx, socket, Request{Op: Add, Name: "n", Namespace: "s", Wait: maxTimeout}, ns); !errors.As(err, &refused) {
		t.Fatalf("the plugin did not wait for the agent: %v", err)
	}
	select {
	case <-freed:
	case <-time.After(20 * time.Second):
		t.Error("the agent still works for a plugin that has gone")
	}
}
