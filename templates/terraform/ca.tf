# The private CA is a root that signs the nodes' certificates itself. Short-lived mode is meant for one level:
# "short-lived certificates must be the last CA in the certificate hierarchy"
# (https://docs.aws.amazon.com/privateca/latest/userguide/short-lived-certificates.html).

resource "aws_acmpca_certificate_authority" "this" {
  count = var.existing_ca == null ? 1 : 0

  type                            = "ROOT"
  usage_mode                      = var.short_lived_ca ? "SHORT_LIVED_CERTIFICATE" : "GENERAL_PURPOSE"
  permanent_deletion_time_in_days = 30
  tags                            = merge(var.tags, { Name = var.name })

  # The CA has no revocation list. A certificate of seven days expires before most clients would read a list.
  # nats-server reads a list only if its configuration says so.
  certificate_authority_configuration {
    key_algorithm     = "EC_prime256v1"
    signing_algorithm = "SHA256WITHECDSA"

    subject {
      common_name = coalesce(var.ca_common_name, "${var.name} root")
    }
  }

  # A changed name, mode or algorithm would replace this CA by another CA, and no node could renew.
  lifecycle {
    prevent_destroy = true
  }
}

# This is the CA's self-signed certificate. It may be valid for years even in short-lived mode: "AWS Private CA does not
# perform validity checks on root CA certificates" (the same page).
resource "aws_acmpca_certificate" "root" {
  count = var.existing_ca == null ? 1 : 0

  certificate_authority_arn   = aws_acmpca_certificate_authority.this[0].arn
  certificate_signing_request = aws_acmpca_certificate_authority.this[0].certificate_signing_request
  signing_algorithm           = "SHA256WITHECDSA"
  template_arn                = "arn:${data.aws_partition.current.partition}:acm-pca:::template/RootCACertificate/V1"

  validity {
    type  = "YEARS"
    value = var.ca_validity_years
  }
}

# Without its certificate, the CA has the status PENDING_CERTIFICATE and issues nothing.
resource "aws_acmpca_certificate_authority_certificate" "this" {
  count = var.existing_ca == null ? 1 : 0

  certificate_authority_arn = aws_acmpca_certificate_authority.this[0].arn
  certificate               = aws_acmpca_certificate.root[0].certificate
  certificate_chain         = aws_acmpca_certificate.root[0].certificate_chain
}

data "aws_acmpca_certificate_authority" "existing" {
  count = var.existing_ca == null ? 0 : 1

  arn = var.existing_ca.arn

  lifecycle {
    postcondition {
      condition     = self.status == "ACTIVE"
      error_message = "existing_ca has the status ${self.status}. Only a CA in the status ACTIVE issues certificates."
    }

    postcondition {
      condition     = (self.usage_mode == "SHORT_LIVED_CERTIFICATE") == var.short_lived_ca
      error_message = "existing_ca has the mode ${self.usage_mode}, and short_lived_ca is ${var.short_lived_ca}."
    }
  }
}

locals {
  ca_arn = var.existing_ca == null ? aws_acmpca_certificate_authority.this[0].arn : var.existing_ca.arn

  # The chain of a subordinate CA ends with its root. A root has no chain
  # (https://docs.aws.amazon.com/privateca/latest/APIReference/API_GetCertificateAuthorityCertificate.html).
  existing_roots = [
    for ca in data.aws_acmpca_certificate_authority.existing : reverse(regexall(
      "-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----",
      join("\n", compact([ca.certificate, ca.certificate_chain])),
    ))[0]
  ]
  ca_certificate = var.existing_ca == null ? aws_acmpca_certificate.root[0].certificate : local.existing_roots[0]
}
