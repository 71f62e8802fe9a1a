// SPDX-License-Identifier: Apache-2.0

package controlplane

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	authentication "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"

	"istio.io/istio/pkg/config/schema/gvr"
	"istio.io/istio/pkg/kube"
	"istio.io/istio/security/pkg/k8s/tokenreview"
)

// reviewTokens has the API server review tokens, as kube-apiserver does with
// those of pods.
func reviewTokens(client kube.Client) {
	set, ok := client.Kube().(*fake.Clientset)
	if !ok {
		return
	}
	set.PrependReactor("create", "tokenreviews", func(action clienttesting.Action) (bool, runtime.Object, error) {
		review, ok := action.(clienttesting.CreateAction).GetObject().(*authentication.TokenReview)
		if !ok {
			return false, nil, nil
		}
		answer := review.DeepCopy()
		user, err := reviewToken(set.Tracker(), review.Spec.Token)
		if err != nil {
			answer.Status.Error = err.Error()
		} else {
			answer.Status.Authenticated, answer.Status.User = true, *user
		}
		return true, answer, nil
	})
}

// reviewToken says whose a token is: "NAMESPACE/ACCOUNT/POD/EXPIRY", the last
// in seconds since 1970. The pod must exist and run with that account.
func reviewToken(objects clienttesting.ObjectTracker, token string) (*authentication.UserInfo, error) {
	parts := strings.Split(token, "/")
	if len(parts) != 4 {
		return nil, errors.New("invalid bearer token")
	}
	namespace, account, name := parts[0], parts[1], parts[2]
	expiry, err := strconv.ParseInt(parts[3], 10, 64)
	if err != nil {
		return nil, errors.New("invalid bearer token")
	}
	if time.Now().After(time.Unix(expiry, 0)) {
		return nil, errors.New("token has expired")
	}
	// Past the client, which is locked while it asks a reactor.
	found, err := objects.Get(gvr.Pod, namespace, name)
	if err != nil {
		return nil, err
	}
	pod, ok := found.(*corev1.Pod)
	if !ok || pod.Spec.ServiceAccountName != account {
		return nil, fmt.Errorf("pod %s/%s does not run with account %s", namespace, name, account)
	}
	return &authentication.UserInfo{
		Username: "system:serviceaccount:" + namespace + ":" + account,
		Groups:   []string{"system:serviceaccounts"},
		Extra: map[string]authentication.ExtraValue{
			tokenreview.PodNameKey: {name},
			tokenreview.PodUIDKey:  {string(pod.UID)},
		},
	}, nil
}
