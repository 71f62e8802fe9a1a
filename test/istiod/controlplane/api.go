// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilyaml "k8s.io/apimachinery/pkg/util/yaml"
	metadatafake "k8s.io/client-go/metadata/fake"
	clienttesting "k8s.io/client-go/testing"

	"istio.io/istio/pkg/config"
	"istio.io/istio/pkg/config/schema/collections"
	"istio.io/istio/pkg/config/schema/gvk"
	"istio.io/istio/pkg/config/schema/gvr"
	"istio.io/istio/pkg/kube"
)

// An api is the API server in memory: Istio's own fake client, and the way to
// change what is in it.
type api struct {
	client kube.CLIClient

	mu      sync.Mutex
	version int // guarded by mu; the last resourceVersion
}

// A tracked client has its objects in a tracker, which tells those who watch.
type tracked interface {
	Tracker() clienttesting.ObjectTracker
}

func newAPI() (*api, error) {
	const minor = "34" // of the Kubernetes that it says it is
	a := &api{client: kube.NewFakeClientWithVersion(minor)}
	reviewTokens(a.client)
	for _, s := range collections.All.All() {
		if s.IsBuiltin() || s.IsSynthetic() {
			continue
		}
		if err := a.define(s.GroupVersionResource()); err != nil {
			return nil, fmt.Errorf("define %s: %w", s.Identifier(), err)
		}
	}
	return a, nil
}

// define makes a resource known: istiod waits for its definition before it
// watches. The version of the gateway API's bundle is any that is new enough.
func (a *api) define(r schema.GroupVersionResource) error {
	crds, ok := a.client.Metadata().Resource(gvr.CustomResourceDefinition).(metadatafake.MetadataClient)
	if !ok {
		return errors.New("the metadata client is no fake")
	}
	_, err := crds.CreateFake(&metav1.PartialObjectMetadata{
		TypeMeta: metav1.TypeMeta{APIVersion: "apiextensions.k8s.io/v1", Kind: "CustomResourceDefinition"},
		ObjectMeta: metav1.ObjectMeta{
			Name:        r.Resource + "." + r.Group,
			Annotations: map[string]string{"gateway.networking.k8s.io/bundle-version": "v1.99.0"},
		},
	}, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// handler is the API to change objects: POST YAML documents to /apply or
// /delete. Of an object to delete, kind and name are enough.
func (a *api) handler() http.Handler {
	mux := http.NewServeMux()
	for path, do := range map[string]func([]byte) error{"/apply": a.apply, "/delete": a.remove} {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			text, err := io.ReadAll(r.Body)
			if err == nil {
				err = do(text)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
			}
		})
	}
	return mux
}

func (a *api) apply(text []byte) error {
	return a.each(text, func(o *object) error {
		a.version++
		o.meta.SetResourceVersion(strconv.Itoa(a.version))
		err := o.tracker.Create(o.resource, o.object, o.meta.GetNamespace())
		if apierrors.IsAlreadyExists(err) {
			err = o.tracker.Update(o.resource, o.object, o.meta.GetNamespace())
		}
		return err
	})
}

func (a *api) remove(text []byte) error {
	return a.each(text, func(o *object) error {
		return o.tracker.Delete(o.resource, o.meta.GetNamespace(), o.meta.GetName())
	})
}

// An object is one document, and where it belongs.
type object struct {
	object   runtime.Object
	meta     metav1.Object
	resource schema.GroupVersionResource
	tracker  clienttesting.ObjectTracker
}

// each calls do with every document of a text, one at a time. a.mu is held
// meanwhile.
func (a *api) each(text []byte, do func(*object) error) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	documents := utilyaml.NewYAMLReader(bufio.NewReader(bytes.NewReader(text)))
	for {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if len(bytes.TrimSpace(document)) == 0 {
			continue
		}
		o, err := a.parse(document)
		if err != nil {
			return err
		}
		if err := do(o); err != nil {
			return fmt.Errorf("%s %s/%s: %w", o.resource.Resource, o.meta.GetNamespace(), o.meta.GetName(), err)
		}
	}
}

func (a *api) parse(document []byte) (*object, error) {
	decoded, kind, err := kube.IstioCodec.UniversalDeserializer().Decode(document, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("decode object: %w", err)
	}
	o := &object{object: decoded}
	if o.meta, err = meta.Accessor(decoded); err != nil {
		return nil, err
	}
	var known bool
	if o.resource, known = gvk.ToGVR(config.FromKubernetesGVK(*kind)); !known {
		return nil, fmt.Errorf("istiod does not know %v", kind)
	}
	client, ok := a.clientOf(kind.Group).(tracked)
	if !ok {
		return nil, fmt.Errorf("the client of %v is no fake", kind)
	}
	o.tracker = client.Tracker()
	return o, nil
}

func (a *api) clientOf(group string) any {
	switch {
	case strings.HasSuffix(group, "istio.io"):
		return a.client.Istio()
	case strings.HasPrefix(group, "gateway.networking."):
		return a.client.GatewayAPI()
	}
	return a.client.Kube()
}
