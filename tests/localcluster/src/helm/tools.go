//go:build tools

// Package helm pins the Helm client that the local cluster compiles.
package helm

import _ "helm.sh/helm/v4/cmd/helm"
